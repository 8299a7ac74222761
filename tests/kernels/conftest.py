import pytest

from xpcap.backend import Backend, Namespace
from xpcap.kernels import fastest


@pytest.fixture(params=["reference", "fastest"])
def xp(request: pytest.FixtureRequest, backend: Backend) -> Namespace:
    """Return the namespace under which operations run as they are written, or their fastest."""
    return backend.xp if request.param == "reference" else fastest(backend.xp)
