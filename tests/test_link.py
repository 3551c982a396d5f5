"""What one graph may tell another."""

import gc

import torch

from sharp_compile.link import Links, carrier


def publish(links, embeddings, never_read=lambda: None):
    links.publish(embeddings, torch.zeros(embeddings.shape[:2], dtype=torch.bool), 24, never_read)


def test_found_by_identity_only():
    links, embeddings = Links(), torch.randn(1, 5, 4)
    publish(links, embeddings)
    place, link = links.find([torch.randn(2), embeddings])
    assert (place, link.elements) == (1, 24)
    assert links.find([embeddings.clone()]) is None
    assert links.find([embeddings.view(1, 5, 4)]) is None


def test_a_tensor_that_was_written_into_is_not_linked():
    links, embeddings = Links(), torch.randn(1, 5, 4)
    publish(links, embeddings)
    embeddings.add_(1)
    assert links.find([embeddings]) is None


def test_a_tensor_of_another_shape_is_not_linked():
    links, embeddings = Links(), torch.randn(1, 5, 4)
    publish(links, embeddings)
    embeddings.resize_(1, 4, 4)
    assert links.find([embeddings]) is None


def test_inference_mode():
    links = Links()
    with torch.inference_mode():
        embeddings = torch.randn(1, 5, 4)
        publish(links, embeddings)
        assert links.find([embeddings]) is not None


def test_forgotten_with_the_tensor():
    links, unread = Links(), []
    for _ in range(100):
        embeddings = torch.randn(1, 5, 4)
        publish(links, embeddings, lambda: unread.append(1))
        links.find([embeddings])[1].read = True
    del embeddings
    gc.collect()
    assert not links._records._records
    assert not unread


def test_what_nobody_read_is_told():
    links, unread = Links(), []
    embeddings = torch.randn(1, 5, 4)
    publish(links, embeddings, lambda: unread.append(1))
    del embeddings
    gc.collect()
    assert unread == [1]


def test_a_length_without_memory():
    length = carrier(10**12, torch.ones(1))
    assert length.shape == (10**12,)
    assert length.untyped_storage().nbytes() == 1
