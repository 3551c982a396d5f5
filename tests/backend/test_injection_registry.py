"""What one graph may tell another."""

import gc

import torch

from sharp_compile.backend.injection_registry import InjectionRegistry
from sharp_compile.tensor_records import as_size_tensor


def publish(registry, embeddings, never_read=lambda: None):
    registry.publish(embeddings, torch.zeros(embeddings.shape[:2], dtype=torch.bool), 24, never_read)


def test_found_by_identity_only():
    registry, embeddings = InjectionRegistry(), torch.randn(1, 5, 4)
    publish(registry, embeddings)
    place, record = registry.find([torch.randn(2), embeddings])
    assert (place, record.elements) == (1, 24)
    assert registry.find([embeddings.clone()]) is None
    assert registry.find([embeddings.view(1, 5, 4)]) is None


def test_a_tensor_that_was_written_into_is_not_linked():
    registry, embeddings = InjectionRegistry(), torch.randn(1, 5, 4)
    publish(registry, embeddings)
    embeddings.add_(1)
    assert registry.find([embeddings]) is None


def test_a_tensor_of_another_shape_is_not_linked():
    registry, embeddings = InjectionRegistry(), torch.randn(1, 5, 4)
    publish(registry, embeddings)
    embeddings.resize_(1, 4, 4)
    assert registry.find([embeddings]) is None


def test_inference_mode():
    registry = InjectionRegistry()
    with torch.inference_mode():
        embeddings = torch.randn(1, 5, 4)
        publish(registry, embeddings)
        assert registry.find([embeddings]) is not None


def test_forgotten_with_the_tensor():
    registry, unread = InjectionRegistry(), []
    for _ in range(100):
        embeddings = torch.randn(1, 5, 4)
        publish(registry, embeddings, lambda: unread.append(1))
        registry.find([embeddings])[1].read = True
    del embeddings
    gc.collect()
    assert not registry._records._records
    assert not unread


def test_what_nobody_read_is_told():
    registry, unread = InjectionRegistry(), []
    embeddings = torch.randn(1, 5, 4)
    publish(registry, embeddings, lambda: unread.append(1))
    del embeddings
    gc.collect()
    assert unread == [1]


def test_a_length_without_memory():
    length = as_size_tensor(10**12, torch.ones(1))
    assert length.shape == (10**12,)
    assert length.untyped_storage().nbytes() == 1
