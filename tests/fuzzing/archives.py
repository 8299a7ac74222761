"""Zip archives with other names, sizes, methods and contents than they should have."""

import io
import warnings
import zipfile
import zlib

from hypothesis import strategies as st

from fuzzing.changes import deflated, flipped, one_or_more

NAMES = ["../escaped", "/escaped", "x\x1b[2J\u202e", "x" * 60000, "", "a/b/c"]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99]
FLAGS = [0x1, 0x8, 0x40, 0x800]  # encrypted, sizes that follow, strongly encrypted, UTF-8
MODES = [0o120777, 0o040755, 0o020666]
NUMBERS = [0, 1, 2**16, 2**31 - 1, 2**32 - 2]


def zipped(valid, inner=flipped):
    """Rewrite some members of an archive, `inner` their contents, or the bytes of the archive."""
    with zipfile.ZipFile(io.BytesIO(valid)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = st.sampled_from(sorted(members))
    change = st.one_of(
        st.tuples(name, st.just("name"), st.sampled_from(NAMES)),
        st.tuples(name, st.just("method"), st.sampled_from(METHODS)),
        st.tuples(name, st.just("flag"), st.sampled_from(FLAGS)),
        st.tuples(name, st.just("mode"), st.sampled_from(MODES)),
        st.tuples(name, st.just("size"), st.sampled_from(NUMBERS)),
        st.tuples(name, st.just("bomb"), st.sampled_from([2**20, 2**26, 2**30])),
        st.tuples(name, st.just("twice"), st.none()),
        st.tuples(name, st.just("remove"), st.none()),
    )
    content = name.flatmap(
        lambda name: inner(members[name]).map(lambda new: [(name, "content", new)])
    )
    rewritten = one_or_more(change, 3) | content
    return rewritten.map(lambda changes: _zip(members, changes)) | flipped(valid)


def _zip(members, changes):
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # names that are there twice are meant
        for name, content in members.items():
            _add(archive, name, content, [how for of, *how in changes if of == name])
    return file.getvalue()


def _add(archive, name, content, changes):
    """Write a member; what the archive's directory then says of it need not be true."""
    info, said = zipfile.ZipInfo(name), {}
    for kind, new in changes:
        match kind:
            case "name":
                info.filename = new
            case "content":
                content = new
            case "method" if new != 99:
                info.compress_type = new
            case "method":
                said["compress_type"] = new
            case "flag":
                said["flag_bits"] = new
            case "mode":
                info.external_attr = new << 16
            case "size":
                said["file_size"] = new
            case "bomb":
                content, checksum = deflated(new, -zlib.MAX_WBITS)
                said |= {"compress_type": 8, "CRC": checksum, "file_size": new}
            case "remove":
                return
            case "twice":
                with archive.open(zipfile.ZipInfo(name), "w") as member:
                    member.write(content)
    with archive.open(info, "w") as member:
        member.write(content)
    for field, value in said.items():
        setattr(info, field, value)
