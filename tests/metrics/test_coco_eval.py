import os
import subprocess
import sys
import threading
import types

import pytest

from xpcap.errors import ConfigurationError, DataError
from xpcap.metrics import evaluate_captions, meteor, spice

CANDIDATES = [["a", "fox"], []]
REFERENCES = [[["the", "fox"], ["foxes"]], [["a", "lamp"]]]


class Meteor:
    """What xpcap uses of pycocoevalcap's class: a process with a standard error, and a lock."""

    made: "Meteor"

    def __init__(self):
        Meteor.made = self
        code = "import sys; print('no heap\\nno hope', file=sys.stderr)"
        self.meteor_p = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.lock = threading.Lock()

    def compute_score(self, references, candidates):
        self.lock.acquire()
        self.meteor_p.wait()
        assert references == {0: ["the fox", "foxes"], 1: ["a lamp"]}
        assert candidates == {0: ["a fox"], 1: [""]}
        self.lock.release()
        return 0.5, [0.25, 0.0]


class FailingMeteor(Meteor):
    def compute_score(self, references, candidates):
        super().compute_score(references, candidates)
        self.lock.acquire()
        return float("")


class Spice:
    def compute_score(self, references, candidates):
        assert references == {0: ["the fox", "foxes"], 1: ["a lamp"]}
        assert candidates == {0: ["a fox"], 1: [""]}
        return 0.125, [{"All": {"f": 0.25}, "Color": {"f": 1.0}}, {"All": {"f": 0.0}}]


class OfflineSpice(Spice):
    def __init__(self):
        raise OSError("no network")


class FailingSpice(Spice):
    def compute_score(self, references, candidates):
        raise subprocess.CalledProcessError(1, ["java"])


@pytest.fixture
def installed(monkeypatch):
    """Return a function that installs a fake pycocoevalcap with given classes, and a fake Java."""

    def install(meteor_class, spice_class):
        for name, kind in (("meteor", meteor_class), ("spice", spice_class)):
            module = types.ModuleType(f"pycocoevalcap.{name}.{name}")
            setattr(module, name.capitalize(), kind)
            for package in ("pycocoevalcap", f"pycocoevalcap.{name}"):
                monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")

    return install


def test_meteor_and_spice_return_the_scores_of_pycocoevalcap(installed):
    installed(Meteor, Spice)
    score = meteor(CANDIDATES, REFERENCES)
    assert (score.corpus, score.images.tolist()) == (0.5, [0.25, 0])
    assert Meteor.made.meteor_p.returncode is not None
    assert Meteor.made.meteor_p.stderr.closed
    score = spice(CANDIDATES, REFERENCES)
    assert (score.corpus, score.images.tolist()) == (0.125, [0.25, 0])
    texts = ["A fox!", "?"], [["The fox.", "Foxes"], ["a lamp"]]
    assert evaluate_captions(*texts, ["SPICE", "METEOR"]).corpus == {"SPICE": 0.125, "METEOR": 0.5}


def test_a_failing_scorer_is_explained_and_its_process_ended(installed):
    installed(FailingMeteor, FailingSpice)
    with pytest.raises(ConfigurationError, match=r"^METEOR: pycocoevalcap failed: no heap$"):
        meteor(CANDIDATES, REFERENCES)
    assert not Meteor.made.lock.locked()
    assert Meteor.made.meteor_p.returncode is not None
    with pytest.raises(ConfigurationError, match="SPICE: pycocoevalcap failed: Command"):
        spice(CANDIDATES, REFERENCES)
    installed(Meteor, OfflineSpice)
    with pytest.raises(ConfigurationError, match="SPICE: pycocoevalcap failed: no network"):
        spice(CANDIDATES, REFERENCES)


@pytest.mark.parametrize("metric", [meteor, spice])
def test_missing_java_or_pycocoevalcap_is_named(installed, monkeypatch, metric):
    name = metric.__name__
    installed(Meteor, Spice)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigurationError, match=f"{name.upper()} needs Java, and there is no"):
        metric(CANDIDATES, REFERENCES)
    monkeypatch.setitem(sys.modules, f"pycocoevalcap.{name}.{name}", None)
    with pytest.raises(ConfigurationError, match=f"{name.upper()} needs pycocoevalcap, .*coco-ev"):
        metric(CANDIDATES, REFERENCES)
    with pytest.raises(DataError, match="image 0 has no reference"):
        metric([["a"]], [[]])


def test_the_real_meteor():
    if os.environ.get("XPCAP_REQUIRE_JAVA") != "1":
        pytest.skip("XPCAP_REQUIRE_JAVA=1 runs METEOR, for which Java needs 2 GB and 12 s")
    words = ["a", "dog", "runs", "in", "the", "park"]
    score = meteor([words, words, []], [[words, ["x"]], [["a", "cat"]], [words]])
    assert score.images[0] == pytest.approx(1)
    assert 0 < score.images[1] < 0.5
    assert score.images[2] == 0
    assert score.images[1] < score.corpus < 1
