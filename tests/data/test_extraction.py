import os
import time
from pathlib import Path

import numpy
import pytest
from mpi import together
from PIL import Image

from xpcap.data.extraction import Extraction, extract
from xpcap.errors import DataError


class Corner:
    """Three features: the colour of the first pixel."""

    name, shape = "corner", (3,)

    def __init__(self):
        self.seen = []

    def prepare(self, picture):
        return numpy.asarray(picture, numpy.float32)[0, 0]

    def __call__(self, images):
        self.seen.append(len(images))
        return images

    def describe(self):
        return {"name": self.name}


def photos(folder, count):
    paths = []
    for k in range(count):
        paths.append(folder / f"{k}.png")
        Image.new("RGB", (5, 4), (k % 256, k // 256, 7)).save(paths[-1])
        os.utime(paths[-1], (1e9, 1e9))
    return paths


def expected(count):
    return numpy.array([(k % 256, k // 256, 7) for k in range(count)], numpy.float32)


def rows_of(extraction):
    return numpy.concatenate(list(extraction.features(extraction.images)))


def hidden(folder):
    return [path for path in folder.iterdir() if path.suffix == ".features"]


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_rows_in_the_order_of_the_images(tmp_path, count):
    extractor, told = Corner(), []
    extraction = Extraction(extractor, photos(tmp_path, count), tmp_path / "out")
    assert extraction.run(progress=lambda *args: told.append(args)) == []
    numpy.testing.assert_array_equal(rows_of(extraction), expected(count))
    assert rows_of(extraction).dtype == numpy.float32
    assert told[-1] == ("images", count, count)
    assert sum(extractor.seen) == count
    assert max(extractor.seen) <= 32
    extraction.forget()
    assert not hidden(tmp_path)


def test_extraction_resumes_after_a_broken_image_is_repaired(tmp_path):
    paths = photos(tmp_path, 100)
    whole = paths[70].read_bytes()
    paths[70].write_bytes(whole[:50])
    extraction = Extraction(Corner(), paths, tmp_path / "out")
    with pytest.raises(DataError, match=r"70\.png cannot be opened as an image"):
        extraction.run()
    assert extraction.path.stat().st_size == 64 * 28
    paths[70].write_bytes(whole)
    again = Corner()
    extraction = Extraction(again, paths, tmp_path / "out")
    assert extraction.run() == []
    assert sum(again.seen) == 36
    numpy.testing.assert_array_equal(rows_of(extraction), expected(100))


def test_broken_images_are_skipped_by_name(tmp_path):
    paths = photos(tmp_path, 40)
    paths[3].write_bytes(b"no picture")
    paths[39].unlink()
    extraction = Extraction(Corner(), paths, tmp_path / "out")
    broken = extraction.run(skip_broken=True)
    assert [picture.path for picture in broken] == [paths[3], paths[39]]
    assert "3.png cannot be opened as an image" in broken[0].reason
    assert "39.png: No such file" in broken[1].reason
    rows = rows_of(extraction)
    assert numpy.isnan(rows[[3, 39]]).all()
    kept = [k for k in range(40) if k not in (3, 39)]
    numpy.testing.assert_array_equal(rows[kept], expected(40)[kept])


def test_all_images_may_be_broken(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"")
    extraction = Extraction(Corner(), [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert len(extraction.run(skip_broken=True)) == 2


class Interrupted(Corner):
    def __init__(self, after):
        super().__init__()
        self.after = after

    def __call__(self, images):
        if len(self.seen) == self.after:
            raise KeyboardInterrupt
        return super().__call__(images)


def test_extraction_resumes_after_an_incomplete_row(tmp_path):
    paths = photos(tmp_path, 100)
    with pytest.raises(KeyboardInterrupt):
        Extraction(Interrupted(2), paths, tmp_path / "out").run()
    (partial,) = hidden(tmp_path)
    assert partial.stat().st_size == 64 * (16 + 12)
    with open(partial, "ab") as file:
        file.write(b"12345")
    again = Corner()
    extraction = Extraction(again, paths, tmp_path / "out")
    extraction.run()
    assert sum(again.seen) == 36
    numpy.testing.assert_array_equal(rows_of(extraction), expected(100))


@pytest.mark.parametrize("when", [5e8, 4e9])
def test_extraction_resumes_at_a_modified_image(tmp_path, when):
    """Whether its new time is earlier, as `mv` and `cp -p` leave it, or later."""
    paths = photos(tmp_path, 64)
    Extraction(Corner(), paths, tmp_path / "out").run()
    Image.new("RGB", (5, 4), (9, 9, 9)).save(paths[5])
    os.utime(paths[5], (when, when))
    again = Corner()
    extraction = Extraction(again, paths, tmp_path / "out")
    extraction.run()
    assert sum(again.seen) == 59
    wanted = expected(64)
    wanted[5] = 9
    numpy.testing.assert_array_equal(rows_of(extraction), wanted)


def test_a_skipped_image_is_refused_without_skip_broken(tmp_path):
    paths = photos(tmp_path, 80)
    whole = paths[40].read_bytes()
    paths[40].write_bytes(b"broken")
    skipping = Interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        Extraction(skipping, paths, tmp_path / "out").run(skip_broken=True)
    extraction = Extraction(Corner(), paths, tmp_path / "out")
    with pytest.raises(DataError, match=r"40\.png cannot be opened"):
        extraction.run()
    paths[40].write_bytes(whole)
    assert extraction.run() == []
    numpy.testing.assert_array_equal(rows_of(extraction), expected(80))


def test_a_skipped_image_is_extracted_once_repaired(tmp_path):
    paths = photos(tmp_path, 40)
    whole = paths[7].read_bytes()
    paths[7].write_bytes(b"broken")
    extraction = Extraction(Corner(), paths, tmp_path / "out")
    assert len(extraction.run(skip_broken=True)) == 1
    paths[7].write_bytes(whole)
    os.utime(paths[7], (1e9, 1e9))
    assert extraction.run(skip_broken=True) == []
    numpy.testing.assert_array_equal(rows_of(extraction), expected(40))


def test_surplus_rows_are_truncated(tmp_path):
    paths = photos(tmp_path, 40)
    extraction = Extraction(Corner(), paths, tmp_path / "out")
    extraction.run()
    with open(extraction.path, "ab") as file:
        file.write(bytes(28 * 5))
    extraction.run()
    assert extraction.path.stat().st_size == 40 * 28


def test_concurrent_extractions_are_refused(tmp_path):
    pytest.importorskip("fcntl", reason="locks are of POSIX systems")
    paths = photos(tmp_path, 40)

    class Second(Corner):
        def __call__(self, images):
            with pytest.raises(DataError, match="another xpcap is at work on it"):
                Extraction(Corner(), paths, tmp_path / "out").run()
            return super().__call__(images)

    extraction = Extraction(Second(), paths, tmp_path / "out")
    extraction.run()
    numpy.testing.assert_array_equal(rows_of(extraction), expected(40))


def test_relative_names_in_another_folder_are_other_images(tmp_path, monkeypatch):
    for name, shift in (("a", 0), ("b", 100)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (5, 4), (shift, 0, 7)).save(tmp_path / name / "0.png")
        os.utime(tmp_path / name / "0.png", (1e9, 1e9))
    for name, shift in (("a", 0), ("b", 100)):
        monkeypatch.chdir(tmp_path / name)
        extraction = Extraction(Corner(), [Path("0.png")], tmp_path / "out")
        extraction.run()
        assert rows_of(extraction)[0, 0] == shift


def test_forget_keeps_the_files_of_other_folders(tmp_path):
    paths = photos(tmp_path, 5)
    names = ["pets", "pets.v2", "my[1]", "my1", "a*"]
    all_of_them = [Extraction(Corner(), paths, tmp_path / name) for name in names]
    for extraction in all_of_them:
        extraction.run()
    for left, extraction in enumerate(all_of_them):
        assert len(hidden(tmp_path)) == len(names) - left
        extraction.forget()
        assert not extraction.path.exists()


def test_an_interrupt_cancels_queued_images(tmp_path):
    class Slow(Interrupted):
        opened = 0

        def prepare(self, picture):
            self.opened += 1
            time.sleep(0.01)
            return super().prepare(picture)

    slow = Slow(0)
    with pytest.raises(KeyboardInterrupt):
        Extraction(slow, photos(tmp_path, 64), tmp_path / "out").run(workers=1)
    assert slow.opened < 45
    assert not hidden(tmp_path)  # where nothing is done, nothing is left


def test_extraction_beside_the_current_folder(tmp_path, monkeypatch):
    paths = photos(tmp_path, 3)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    extraction = Extraction(Corner(), paths, Path("."))
    extraction.run()
    assert extraction.path.parent == tmp_path


class Halves(Corner):
    """Two regions: the colours of the first pixel and of the last, times 300."""

    shape = (2, 3)

    def prepare(self, picture):
        return numpy.asarray(picture, numpy.float32)[[0, -1], [0, -1]] * numpy.float32(300)


def test_features_of_regions_are_stored_in_half_precision(tmp_path, monkeypatch):
    monkeypatch.setattr("xpcap.data.extraction._BLOCK", 100)  # bytes: three rows
    paths = photos(tmp_path, 70)
    paths[40].write_bytes(b"")
    extraction = Extraction(Halves(), paths, tmp_path / "out")
    with pytest.raises(DataError, match=r"40\.png"):
        extraction.run()
    assert [picture.path for picture in extraction.run(skip_broken=True)] == [paths[40]]
    assert extraction.path.stat().st_size == 70 * (16 + 2 * 3 * 2)
    rows = rows_of(extraction)
    assert (rows.shape, rows.dtype) == ((70, 2, 3), numpy.float16)
    assert numpy.isnan(rows[40]).all()
    kept = [k for k in range(70) if k != 40]
    wanted = (300 * expected(70)[kept]).astype("float16")
    numpy.testing.assert_array_equal(rows[kept], numpy.stack([wanted] * 2, axis=1))
    found = extract(Halves(), paths, skip_broken=True)
    numpy.testing.assert_array_equal(found.features, rows[kept])
    assert extract(Halves(), []).features.shape == (0, 2, 3)


def test_features_beyond_half_precision_are_named(tmp_path):
    paths = photos(tmp_path, 240)  # 300 times 219 is more than 65,504
    with pytest.raises(
        DataError, match=r"219\.png: features up to 6\.57e\+04; expected at most 65504"
    ):
        Extraction(Halves(), paths, tmp_path / "out").run()


def test_extract_keeps_features_in_memory(tmp_path):
    extractor, paths, told = Corner(), photos(tmp_path, 70), []
    found = extract(extractor, paths, progress=lambda *args: told.append(args))
    numpy.testing.assert_array_equal(found.features, expected(70))
    assert found.broken == {}
    assert max(extractor.seen) <= 32
    assert told == [("images", done, 70) for done in (32, 64, 70)]
    assert extract(extractor, []).features.shape == (0, 3)
    assert not hidden(tmp_path)


def test_extract_leaves_out_broken_images_if_asked(tmp_path):
    paths = photos(tmp_path, 70)
    paths[33].write_bytes(b"")
    paths[69].unlink()
    kept = [k for k in range(70) if k not in (33, 69)]
    for found in together(3, lambda ranks: extract(Corner(), paths, True, ranks=ranks)):
        numpy.testing.assert_array_equal(found.features, expected(70)[kept])
        assert list(found.broken) == [33, 69]
        assert "33.png cannot be opened as an image: it is empty" in found.broken[33]
    assert extract(Corner(), [paths[33]], skip_broken=True).features.shape == (0, 3)
    with pytest.raises(DataError, match=r"33\.png"):
        extract(Corner(), paths)


def test_other_images_or_extractors_have_their_own_file(tmp_path):
    paths = photos(tmp_path, 40)
    Extraction(Corner(), paths, tmp_path / "out").run()
    Extraction(Corner(), paths[:-1], tmp_path / "out").run()
    other = Corner()
    other.describe = lambda: {"name": "other"}
    last = Extraction(other, paths, tmp_path / "out")
    last.run()
    assert sum(other.seen) == 40
    assert len(hidden(tmp_path)) == 3
    last.forget()
    assert not hidden(tmp_path)


def test_features_that_are_not_finite_are_refused(tmp_path):
    class Bad(Corner):
        def __call__(self, images):
            images = images.copy()
            images[2, 1] = numpy.inf
            return images

    with pytest.raises(DataError, match=r"2\.png: 'corner' gives NaN or infinity"):
        Extraction(Bad(), photos(tmp_path, 5), tmp_path / "out").run()


def test_many_threads_keep_the_order(tmp_path):
    paths = photos(tmp_path, 200)
    extraction = Extraction(Corner(), paths, tmp_path / "out")
    extraction.run(workers=16)
    numpy.testing.assert_array_equal(rows_of(extraction), expected(200))
