"""What people run: commands, benchmarks, evaluation, the demo, folders of videos, HTML reports.

Everything here may import the compiler; nothing of the compiler imports this.
"""
