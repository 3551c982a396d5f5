"""How far a command is, where nobody watches a terminal."""

from sharp_compile.tools.progress import progress


def test_lines_where_the_output_is_piped(capsys):
    with progress(4) as shown:
        for what in ("one", "two", "one", "three"):
            shown.next(what)
    assert capsys.readouterr().err == "[0/4] one\n[1/4] two\n[3/4] three\n"
    with progress(100) as shown:
        shown.begin("many")
        shown.advance(50)
        shown.begin("more")
    assert capsys.readouterr().err == "[0/100] many\n[50/100] more\n"
