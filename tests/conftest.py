import pytest
import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every image that the library `datasets` decodes."""
    image = pytest.importorskip("datasets").Image
    calls: list[int] = []
    own = image.decode_example
    monkeypatch.setattr(image, "decode_example", lambda *a, **k: (calls.append(1), own(*a, **k))[1])
    return calls


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
