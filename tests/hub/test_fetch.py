"""fetch_bundle, from real servers on loopback: whole and checked, or nothing at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from bundle_folders import command_line, make_bundle, tree
from file_server import FileServer
from integration.hub_stand_in import HubStandIn

from monai_kd.hub import fetch_bundle, index_bundles, pack_bundle
from monai_kd.hub.download import download
from monai_kd.hub.fetch import _locked

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """The pauses before an interrupted download is taken up again are for the sake of servers, not of tests."""
    monkeypatch.setattr("monai_kd.hub.download._PAUSE_S", 0.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "made" / "ball")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "www").mkdir()
    with FileServer(tmp_path / "www") as running:
        yield running


@pytest.fixture
def published(bundle: Path, server: FileServer) -> str:
    """The address of ball 0.1.0."""
    return f"{server.url}/{pack_bundle(bundle, server.folder).path.name}"


@pytest.fixture
def got(tmp_path: Path) -> Path:
    return tmp_path / "got"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def left_behind(folder: Path) -> list[str]:
    """Names in the download folder that are no bundle."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".") or ".part" in path.name)


def refused(source: str, got: Path, kind: type[Exception], match: str, **keywords: str) -> None:
    """Fetching fails with that one line, and what stood in the folder is as it was."""
    before = tree(got) if got.exists() else None
    with pytest.raises(kind, match=match) as caught:
        fetch_bundle(source, got, **keywords)
    assert "\n" not in str(caught.value)
    after = {name: content for name, content in tree(got).items() if ".part" not in name} if got.exists() else None
    before = before and {name: content for name, content in before.items() if ".part" not in name}
    assert after == before or (before is None and not after)


# ---- a zip by its address -------------------------------------------------------------------------------------------


def test_a_zip_arrives_whole_and_nothing_else(bundle, server, published, got, capsys):
    expected = sha256(server.folder / "ball_v0.1.0.zip")
    assert fetch_bundle(published, got / "deep", sha256=expected.upper()) == got / "deep" / "ball"
    assert tree(got / "deep" / "ball") == tree(bundle)
    assert [path.name for path in (got / "deep").iterdir()] == ["ball"]
    assert capsys.readouterr().out == f"sha256: {expected} (sha256 as expected)\n"
    assert os.access(got / "deep" / "ball" / "models" / "model.pt", os.R_OK)


def test_without_a_hash_the_hash_is_printed(server, published, got, capsys):
    fetch_bundle(published, got)
    printed = capsys.readouterr().out
    assert printed == f"sha256: {sha256(server.folder / 'ball_v0.1.0.zip')} (not compared: none was given)\n"


def test_a_file_address_works_and_a_bare_path_is_told_so(bundle, tmp_path, got):
    path = pack_bundle(bundle, tmp_path / "dist").path
    assert tree(fetch_bundle(path.as_uri(), got)) == tree(bundle)
    refused(str(path), got, ValueError, f"is no address; .* for a file here write {path.as_uri()}")
    refused("ftp://example.org/ball.zip", got, ValueError, r"is no address; known: http://")
    refused((tmp_path / "absent.zip").as_uri(), got, FileNotFoundError, r"absent\.zip: No such file")


def test_a_wrong_hash_unpacks_nothing_and_keeps_no_bytes(published, got):
    make_bundle(got / "ball", "0.0.9")
    refused(published, got, ValueError, "expected 0000.*nothing was unpacked", sha256="0" * 64)
    assert left_behind(got) == []
    refused(published, got, ValueError, "sha256 'abc' is not one", sha256="abc")


def test_another_name_or_version_is_refused(published, got):
    refused(published, got, ValueError, "holds the bundle 'ball', expected 'cube'", name="cube")
    refused(published, got, ValueError, r"holds version 0\.1\.0 of 'ball', expected 0\.2\.0", version="0.2.0")
    refused(published, got, ValueError, r"name '\.\./x' is no name", name="../x")
    assert not got.exists(), "the folder that was made for nothing is gone"


# ---- what stood there -----------------------------------------------------------------------------------------------


def test_an_older_folder_is_kept_aside_by_its_version(bundle, published, got, capsys):
    old = tree(make_bundle(got / "ball", "0.0.9", seed=7))
    fetch_bundle(published, got)
    assert tree(got / "ball") == tree(bundle)
    assert tree(got / "ball.previous-0.0.9") == old
    assert (
        f"kept aside: the folder that stood at {got}/ball is now {got}/ball.previous-0.0.9" in capsys.readouterr().out
    )


def test_names_of_folders_kept_aside_never_collide(published, got):
    for seed in range(3):
        make_bundle(got / "ball", "0.0.9", seed=seed)
        fetch_bundle(published, got)
    (got / "ball" / "configs" / "metadata.json").write_text('{"version": "../../out"}')
    fetch_bundle(published, got)
    names = sorted(path.name for path in got.iterdir())
    assert names[:2] == ["ball", "ball.previous-0.0.9"]
    assert len(names) == 5
    assert all(name.startswith("ball.previous-") for name in names[1:])


def test_a_file_in_the_way_is_refused(published, got):
    got.mkdir()
    (got / "ball").write_text("mine")
    refused(published, got, FileExistsError, "ball' is a file")
    refused(published, got / "ball", NotADirectoryError, "bundle_dir '.*ball' is a file")


def test_the_old_folder_comes_back_if_the_new_one_cannot_be_placed(published, got, monkeypatch):
    make_bundle(got / "ball", "0.0.9")
    rename = os.rename

    def fails_for_the_new_one(source, target):
        if Path(source).parent != got and Path(target) == got / "ball":
            raise OSError("the disk went away")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_for_the_new_one)
    refused(published, got, OSError, "the disk went away")


# ---- interruptions --------------------------------------------------------------------------------------------------


def test_a_broken_connection_is_taken_up_where_it_ended(bundle, server, published, got):
    server.cuts = [70_000, 50_000]
    assert tree(fetch_bundle(published, got)) == tree(bundle)
    assert [start for _, start in server.requests] == [0, 70_000, 120_000]


def test_a_server_without_ranges_is_asked_anew(bundle, server, published, got):
    server.ranges, server.cuts = False, [70_000, 100]
    assert tree(fetch_bundle(published, got)) == tree(bundle)
    assert len(server.requests) == 3


def test_a_server_without_validators_is_not_trusted_to_resume(bundle, server, published, got):
    for validator in ("", "weak"):
        server.validator, server.cuts, server.requests = validator, [70_000], []
        assert tree(fetch_bundle(published, got)) == tree(bundle)
        assert [start for _, start in server.requests] == [0, 0]


def test_a_connection_that_keeps_breaking_is_one_line_and_the_next_call_goes_on(bundle, server, published, got):
    server.cuts = [10_000] * 5
    refused(
        published, got, OSError, rf"download of {published} broke off 5 times, .* after 50000 of \d+ bytes; run the"
    )
    assert left_behind(got) == ["ball_v0.1.0.zip.part", "ball_v0.1.0.zip.part.json"]
    server.requests = []
    assert tree(fetch_bundle(published, got)) == tree(bundle)
    assert [start for _, start in server.requests] == [50_000]
    assert left_behind(got) == []


@pytest.mark.parametrize("validator", ["etag", "date"])
@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_a_file_that_changed_meanwhile_is_downloaded_anew(bundle, server, published, got, validator, ignores_if_range):
    server.cuts, server.validator, server.ignores_if_range = [10_000] * 5, validator, ignores_if_range
    refused(published, got, OSError, "broke off 5 times")
    (bundle / "models" / "model.pt").write_bytes(os.urandom(150_000))
    path = pack_bundle(bundle, server.folder).path
    os.utime(path, (1e9, 1e9))
    assert tree(fetch_bundle(published, got)) == tree(bundle)


def test_bytes_of_another_address_are_not_mixed_in(bundle, server, published, got):
    server.cuts = [10_000] * 5
    refused(published, got, OSError, "broke off")
    (server.folder / "mirror").mkdir()
    (server.folder / "ball_v0.1.0.zip").rename(server.folder / "mirror" / "ball_v0.1.0.zip")
    server.requests = []
    fetch_bundle(f"{server.url}/mirror/ball_v0.1.0.zip", got)
    assert [start for _, start in server.requests] == [0]


def test_a_download_that_was_whole_is_not_repeated(bundle, server, published, got):
    """The disk was full at unpacking: the bytes are there already, the server confirms that they are still right."""
    content = (server.folder / "ball_v0.1.0.zip").read_bytes()
    server.cuts = [len(content) - 1] + [0] * 4
    refused(published, got, OSError, "broke off")
    with (got / "ball_v0.1.0.zip.part").open("ab") as file:
        file.write(content[-1:])
    assert tree(fetch_bundle(published, got)) == tree(bundle)


def test_two_downloads_to_one_place_are_told_apart(bundle, server, published, got):
    server.cuts, server.stalls = [1000], True
    first = threading.Thread(target=lambda: fetch_bundle(published, got))
    first.start()
    while not (got / "ball_v0.1.0.zip.part").exists():
        time.sleep(0.01)
    with pytest.raises(FileExistsError, match=r"another process downloads to '.*ball_v0\.1\.0\.zip\.part'"):
        fetch_bundle(published, got)
    server.released.set()
    first.join()
    assert tree(got / "ball") == tree(bundle)
    assert left_behind(got) == []


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(bundle, published, got, monkeypatch):
    """The process before removes the file after this one opened it, and the next one makes another of that name."""
    lock = got / ".ball_v0.1.0.zip.part.lock"
    flock, nodes = fcntl.flock, []

    def flock_too_late(file, operation):
        nodes.append(os.fstat(file.fileno()).st_ino)
        if len(nodes) <= 2:
            lock.rename(got / f"of process {len(nodes)}")  # kept, so that no later file gets its inode
        if len(nodes) == 2:
            lock.touch()
        flock(file, operation)

    def download_locked(url, part):
        with lock.open("a") as other, pytest.raises(BlockingIOError):
            flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        download(url, part)

    monkeypatch.setattr("fcntl.flock", flock_too_late)
    monkeypatch.setattr("monai_kd.hub.fetch.download", download_locked)
    assert tree(fetch_bundle(published, got)) == tree(bundle)
    assert len(set(nodes)) == len(nodes) == 3
    assert left_behind(got) == []


def test_a_lock_that_is_removed_over_and_over_is_given_up(published, got, monkeypatch):
    lock = got / ".ball_v0.1.0.zip.part.lock"
    monkeypatch.setattr("fcntl.flock", lambda *_: lock.unlink())
    refused(published, got, FileExistsError, r"other processes download to '.*ball_v0\.1\.0\.zip\.part' over and over")


def test_never_two_at_once_hold_the_lock(tmp_path):
    inside, overlaps, entered = [], [], []

    def come_and_go(number: int) -> None:
        begun = time.monotonic()
        # a second, and on a busy machine until each has been inside
        while (gone := time.monotonic() - begun) < 1 or (number not in entered and gone < 60):
            with suppress(FileExistsError), _locked(tmp_path / "ball.zip.part"):
                inside.append(number)
                time.sleep(0)
                overlaps.extend(other for other in list(inside) if other != number)
                entered.append(number)
                inside.remove(number)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert set(entered) == {0, 1, 2, 3}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", sorted({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}))
def test_a_disk_without_locks_is_a_note_that_names_the_folder(bundle, published, got, monkeypatch, capsys, code):
    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert tree(fetch_bundle(published, got)) == tree(bundle)
    note = f"note: the disk of '{got}' has no locks; let no other process download to it meanwhile\n"
    assert capsys.readouterr().out.count(note) == 1
    assert left_behind(got) == []


def test_a_system_without_flock_downloads_all_the_same(bundle, published, got, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    assert tree(fetch_bundle(published, got)) == tree(bundle)
    assert left_behind(got) == []


def test_another_failure_to_lock_is_not_taken_for_another_process(published, got, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", fails)
    with pytest.raises(OSError, match="Input/output error") as caught:
        fetch_bundle(published, got)
    assert not isinstance(caught.value, FileExistsError)


def test_a_killed_download_showed_its_progress_and_is_resumed(bundle, server, published, got):
    server.cuts, server.stalls = [131_072], True
    part = got / "ball_v0.1.0.zip.part"
    terminal, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))  # a new one has no width, and no bar fits into that
    command = [sys.executable, "-m", "monai_kd", "fetch", published, str(got)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = ""
        while "%" not in shown or not part.is_file() or not part.stat().st_size:
            try:
                if select.select([terminal], [], [], 0.1)[0]:
                    shown += os.read(terminal, 4096).decode()
            except OSError:  # nobody holds the other end any more
                pytest.fail(f"the command ended by itself: {shown}")
        process.send_signal(signal.SIGKILL)
    os.close(terminal)
    assert "ball_v0.1.0.zip" in shown
    there = part.stat().st_size
    server.requests = []
    assert tree(fetch_bundle(published, got)) == tree(bundle)
    assert [start for _, start in server.requests] == [there]
    assert left_behind(got) == []


# ---- hosts that fail ------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_an_unreachable_host_names_address_and_reason(got):
    url = f"http://127.0.0.1:{closed_port()}/ball_v0.1.0.zip"
    refused(url, got, OSError, rf"cannot download {url}: Connection refused")
    refused("http://nowhere.invalid/ball.zip", got, OSError, r"cannot download http://nowhere\.invalid/ball\.zip: \w")
    refused("http://", got, OSError, "cannot download http://: no host given")
    assert not got.exists()


def test_a_missing_file_and_a_failing_server_are_named(server, published, got):
    refused(f"{published}x", got, FileNotFoundError, rf"cannot download {published}x: HTTP 404 Not Found")
    server.status = 503
    refused(published, got, OSError, rf"cannot download {published}: HTTP 503")


def test_a_silent_server_is_given_up(server, published, got, monkeypatch):
    monkeypatch.setenv("MONAI_KD_TIMEOUT", "0.3")
    server.silent.set()
    refused(published, got, OSError, rf"cannot download {published}: no answer within 0\.3 s")
    server.silent.clear()
    server.cuts, server.stalls = [1000] * 5, True
    refused(published, got, OSError, r"broke off 5 times, the last time after \d+ bytes \(no answer within 0\.3 s\)")
    monkeypatch.setenv("MONAI_KD_TIMEOUT", "soon")
    refused(published, got, ValueError, "MONAI_KD_TIMEOUT is 'soon'; it must be a number of seconds above 0")


def test_a_full_disk_is_said_before_the_download(published, got, monkeypatch):
    import shutil

    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 0))
    refused(published, got, OSError, rf"{published} has 0 MB to download and the disk of '.*got' has 0 MB free")


def test_a_disk_that_fills_up_is_one_line_on_the_command_line(bundle, tmp_path):
    """A real one of 300 KB in a mount namespace: the download of 200 KB fits, the unpacked bundle does not."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    (tmp_path / "disk").mkdir()
    source = pack_bundle(bundle, tmp_path / "dist").path.as_uri()
    script = (
        f'mount -t tmpfs -o size=300k none disk && "$0" -m monai_kd fetch {source} disk; code=$?; '
        "ls -A disk; exit $code"
    )
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, sys.executable],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "has 0 MB free; make room or choose another --bundle_dir" in done.stderr.strip().splitlines()[-1]
    assert set(done.stdout.splitlines()[1:]) <= {"ball_v0.1.0.zip.part", "ball_v0.1.0.zip.part.json"}


# ---- zips that may not be unpacked ----------------------------------------------------------------------------------


def member(name: str, kind: int = stat.S_IFREG) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.create_system = 3
    made.external_attr = (kind | 0o644) << 16
    return made


def evil(*members: str | zipfile.ZipInfo, version: str = "0.1.0") -> Callable[[zipfile.ZipFile], None]:
    """A bundle that also holds these."""

    def write(archive: zipfile.ZipFile) -> None:
        archive.writestr("ball/configs/metadata.json", json.dumps({"version": version}))
        for extra in members:
            archive.writestr(extra, "x")

    return write


def without(*names: str) -> Callable[[zipfile.ZipFile], None]:
    def write(archive: zipfile.ZipFile) -> None:
        for name in names:
            archive.writestr(name, "[]")

    return write


def huge(archive: zipfile.ZipFile) -> None:
    evil("ball/models/model.pt")(archive)
    archive.filelist[-1].file_size = 10**15  # what the central directory will declare


def encrypted(archive: zipfile.ZipFile) -> None:
    evil("ball/models/model.pt")(archive)
    archive.filelist[-1].flag_bits |= 1


BAD_ZIPS = {
    "parent": (evil("ball/../../escaped"), r"holds 'ball/\.\./\.\./escaped', a path that may lead outside"),
    "absolute": (evil("/etc/escaped"), "holds '/etc/escaped', a path"),
    "drive": (evil("C:/escaped"), "holds 'C:/escaped', a path"),
    "backslash": (evil("ball\\..\\..\\escaped"), "a path that may lead outside"),
    "control": (evil("ball/a\x1b[2J"), "a path that may lead outside"),
    "dot": (evil("ball/./x"), "a path that may lead outside"),
    "symlink": (evil(member("ball/link", stat.S_IFLNK)), "holds 'ball/link', a link or device"),
    "device": (evil(member("ball/null", stat.S_IFCHR)), "holds 'ball/null', a link or device"),
    "tops": (evil("cube/x"), r"must hold one top folder, named as the bundle; it holds \['ball', 'cube'\]"),
    "flat": (without("configs/metadata.json"), r"'configs/configs/metadata\.json' is not in it"),
    "hidden": (without(".ssh/configs/metadata.json"), r"top folder '\.ssh' is no name"),
    "empty": (without(), "it holds nothing"),
    "no metadata": (without("ball/models/model.pt"), r"is no bundle: 'ball/configs/metadata\.json' is not in it"),
    "list metadata": (without("ball/configs/metadata.json"), "has no version"),
    "twice": (evil("ball/A", "ball/a"), "holds 'ball/a' twice"),
    "both": (evil("ball/a", "ball/a/b"), "holds 'ball/a' as a file and as a folder"),
    "bomb": (huge, r"unpacks to 1000000000 MB and the disk of .* has \d+ MB free"),
    "encrypted": (encrypted, "encrypted or in an unknown compression"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("which", BAD_ZIPS)
def test_a_zip_that_may_not_be_unpacked_changes_nothing(which, server, tmp_path, got, monkeypatch, capsys):
    write, message = BAD_ZIPS[which]
    with zipfile.ZipFile(server.folder / "ball.zip", "w") as archive:
        write(archive)
    make_bundle(got / "ball", "0.0.9")
    outside = tree(tmp_path)
    refused(f"{server.url}/ball.zip", got, (ValueError, OSError), message)
    assert command_line(monkeypatch, "fetch", f"{server.url}/ball.zip", got) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert f"{server.url}/ball.zip" in error or which == "bomb"
    assert {name: content for name, content in tree(tmp_path).items() if ".part" not in name} == outside


def test_truncated_and_damaged_zips_are_refused(server, published, got):
    path = server.folder / "ball_v0.1.0.zip"
    content = path.read_bytes()
    make_bundle(got / "ball", "0.0.9")
    for damaged, message in (
        (content[:-100], "is no zip, or a truncated one"),
        (content[: len(content) // 2], "is no zip, or a truncated one"),
        (b"", "is no zip, or a truncated one"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is no zip, or a truncated one"),
        (content.replace(content[5000:5010], b"0123456789"), "is damaged: Bad CRC-32"),
    ):
        path.write_bytes(damaged)
        refused(published, got, ValueError, message)
        assert left_behind(got) == []


# ---- an index -------------------------------------------------------------------------------------------------------


@pytest.fixture
def index(bundle, server, published, tmp_path) -> str:
    """The address of an index of ball 0.1.0, ball 0.2.0 and cube 0.1.0."""
    for name, version in (("ball", "0.2.0"), ("cube", "0.1.0")):
        pack_bundle(make_bundle(tmp_path / f"made-{version}" / name, version, seed=5), server.folder)
    index_bundles(sorted(server.folder.glob("*.zip")), server.url, server.folder / "models" / "model_info.json")
    return f"{server.url}/models/model_info.json"


def test_an_index_gives_the_newest_version_and_its_hash(index, server, got, capsys):
    folder = fetch_bundle(index, got, name="ball")
    assert json.loads((folder / "configs" / "metadata.json").read_text())["version"] == "0.2.0"
    assert "(sha1 and sha256 as expected)" in capsys.readouterr().out
    folder = fetch_bundle(index, got, name="ball", version="0.1.0")
    assert json.loads((folder / "configs" / "metadata.json").read_text())["version"] == "0.1.0"
    assert (got / "ball.previous-0.2.0").is_dir()


def test_an_index_names_what_it_has(index, server, got):
    refused(index, got, ValueError, "holds 2 bundles: ball, cube; choose by --name")
    refused(index, got, ValueError, "has no bundle 'bell'; known: ball, cube", name="bell")
    refused(index, got, ValueError, r"has no 'ball' 0\.3\.0; known: 0\.1\.0, 0\.2\.0", name="ball", version="0.3.0")
    refused(index, got, ValueError, "in the index, and 0{64} was given", name="ball", sha256="0" * 64)
    (server.folder / "models" / "model_info.json").write_text("<html>")
    refused(index, got, ValueError, rf"'{index}' is no download index: no JSON")


def test_bytes_that_differ_from_the_index_are_refused(index, server, got):
    (server.folder / "cube_v0.1.0.zip").write_bytes((server.folder / "ball_v0.1.0.zip").read_bytes())
    refused(index, got, ValueError, "has sha256 .* expected", name="cube")


def test_the_sha1_of_the_model_zoos_form_is_compared(index, server, got, capsys):
    file = server.folder / "models" / "model_info.json"
    entry = json.loads(file.read_text())["cube_v0.1.0"]
    del entry["sha256"]
    file.write_text(json.dumps({"cube_v0.1.0": entry}))
    assert fetch_bundle(index, got).name == "cube"  # the only one needs no name
    assert "(sha1 as expected)" in capsys.readouterr().out
    file.write_text(json.dumps({"cube_v0.1.0": entry | {"checksum": "0" * 40}}))
    refused(index, got, ValueError, "has sha1 .* expected 0000")


# ---- GitHub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def github(index, server, monkeypatch) -> Path:
    """A stand-in for GitHub: returns the folder of the release's assets; the index is that of its tag."""
    assets = server.folder / "someone" / "kd" / "releases" / "download" / "v1"
    assets.mkdir(parents=True)
    for path in server.folder.glob("*.zip"):
        path.rename(assets / path.name)
    models = server.folder / "raw" / "someone" / "kd" / "v1" / "models"
    models.parent.mkdir(parents=True)
    (server.folder / "models").rename(models)
    monkeypatch.setenv("MONAI_KD_GITHUB", server.url)
    monkeypatch.setenv("MONAI_KD_GITHUB_RAW", f"{server.url}/raw/")
    return assets


def test_a_release_gives_the_newest_version_of_its_index(github, server, got, capsys):
    folder = fetch_bundle("github:someone/kd/v1", got, name="ball")
    assert json.loads((folder / "configs" / "metadata.json").read_text())["version"] == "0.2.0"
    assert [path for path, _ in server.requests] == [
        "/raw/someone/kd/v1/models/model_info.json",
        "/someone/kd/releases/download/v1/ball_v0.2.0.zip",
    ]
    assert "sha256 as expected" in capsys.readouterr().out


def test_a_release_without_index_needs_a_version_and_a_hash(github, server, got, capsys):
    (server.folder / "raw").rename(server.folder / "gone")
    release = {"name": "ball", "version": "0.1.0"}
    refused("github:someone/kd/v1", got, FileNotFoundError, r"model_info\.json: HTTP 404", name="ball")
    address = f"{server.url}/raw/someone/kd/v1/models/model_info.json"
    refused("github:someone/kd/v1", got, FileNotFoundError, f"no index at {address}, so give --sha256", **release)
    assert not got.exists()
    refused("github:someone/kd/v1", got, ValueError, "expected 0000.*nothing was unpacked", **release, sha256="0" * 64)
    fetch_bundle("github:someone/kd/v1", got, **release, sha256=sha256(github / "ball_v0.1.0.zip"))
    assert "(sha256 as expected)" in capsys.readouterr().out


def test_an_asset_that_the_index_does_not_list_needs_a_hash(github, server, got, bundle):
    extra = pack_bundle(make_bundle(server.folder / "made" / "ball", "0.3.0"), github)
    release = {"name": "ball", "version": "0.3.0"}
    refused("github:someone/kd/v1", got, ValueError, r"has no 'ball' 0\.3\.0; known: 0\.1\.0, 0\.2\.0", **release)
    assert fetch_bundle("github:someone/kd/v1", got, **release, sha256=extra.sha256) == got / "ball"


def test_a_release_without_the_asset_names_its_address(github, server, got):
    (github / "cube_v0.1.0.zip").unlink()
    refused("github:someone/kd/v1", got, FileNotFoundError, r"v1/cube_v0\.1\.0\.zip: HTTP 404", name="cube")
    refused("github:someone/kd/v1", got, ValueError, "needs --name")
    refused("github:someone/kd", got, ValueError, "write github:OWNER/REPO/TAG", name="ball")
    refused("github:someone/../v1", got, FileNotFoundError, "HTTP 404", name="ball")


# ---- Hugging Face ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubStandIn]:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install 'monai_kd[hub]'")
    with HubStandIn() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


def test_a_repository_gives_its_latest_version(hub, bundle, tmp_path, got, capsys):
    old = make_bundle(tmp_path / "old" / "ball", "0.0.9", seed=3)
    hub.add("someone/ball", tree(old), tags=("0.0.9",))
    commit = hub.add("someone/ball", tree(bundle) | {".gitattributes": b"*.pt filter=lfs\n"}, tags=("0.1.0",))
    assert fetch_bundle("hf:someone/ball", got, name="ball") == got / "ball"
    assert tree(got / "ball") == tree(bundle)
    assert capsys.readouterr().out == f"hf:someone/ball: revision {commit}, 7 files with the hub's hashes\n"
    fetch_bundle("hf:someone/ball", got, name="ball", version="0.0.9")
    assert tree(got / "ball") == tree(old)
    assert sorted(path.name for path in got.iterdir()) == ["ball", "ball.previous-0.1.0"]


def test_the_tag_latest_version_comes_first_and_main_last(hub, bundle, tmp_path, got):
    hub.add("someone/ball", tree(bundle), tags=("latest_version",))
    hub.add("someone/ball", tree(make_bundle(tmp_path / "new" / "ball", "0.2.0")), tags=("0.2.0",))
    assert tree(fetch_bundle("hf:someone/ball", got, name="ball")) == tree(bundle)
    hub.add("someone/untagged", tree(bundle))
    assert tree(fetch_bundle("hf:someone/untagged", got, name="other")) == tree(bundle)


def test_a_file_with_another_hash_than_the_hub_states_is_refused(hub, bundle, got):
    hub.add("someone/ball", tree(bundle), tags=("0.1.0",))
    make_bundle(got / "ball", "0.0.9")
    hub.on_download = lambda content: bytes(reversed(content))  # the same size
    refused("hf:someone/ball", got, ValueError, "has the hash .* the hub states", name="ball")
    hub.on_download = lambda content: content
    assert tree(fetch_bundle("hf:someone/ball", got, name="ball")) == tree(bundle)
    assert left_behind(got) == []


def test_what_a_hub_cannot_give_is_one_line(hub, bundle, got):
    hub.add("someone/ball", tree(bundle), tags=("0.1.0", "0.2.0"))
    hub.add("someone/text", {"README.md": b"no bundle"})
    hub.add("someone/evil", tree(bundle) | {"../escaped": b"x"})
    refused("hf:someone/ball", got, OSError, r"hf:someone/ball at http.*Revision Not", name="ball", version="9.9.9")
    refused("hf:someone/nothing", got, OSError, r"hf:someone/nothing at http.*Repository Not Found", name="ball")
    refused("hf:someone/text", got, ValueError, r"hf:someone/text is no bundle: configs/metadata\.json", name="ball")
    refused("hf:someone/evil", got, ValueError, r"holds '\.\./escaped', a path that may lead outside", name="ball")
    refused("hf:someone/ball", got, ValueError, r"at '0\.2\.0' holds version 0\.1\.0", name="ball", version="0.2.0")
    refused("hf:someone/ball", got, ValueError, "needs --name")
    refused("hf:ball", got, ValueError, "write hf:OWNER/REPO", name="ball")
    refused("hf:someone/ball", got, ValueError, "--sha256 is of a zip", name="ball", sha256="0" * 64)
    assert not got.exists()


def test_a_hub_that_cannot_be_reached_is_one_line(hub, got, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    refused("hf:someone/ball", got, OSError, r"hf:someone/ball at http://127\.0\.0\.1:\d+: .*refused", name="ball")


# ---- large files ----------------------------------------------------------------------------------------------------


def light(bundle: Path, server: FileServer, **changes: str) -> str:
    """Publish the bundle without its weights, which stand beside it and are listed; return the address."""
    weights = (bundle / "models" / "model.pt").read_bytes()
    (server.folder / "weights.pt").write_bytes(weights)
    entry = {"path": "models/model.pt", "url": f"{server.url}/weights.pt", "hash_type": "sha256"}
    entry |= {"hash_val": hashlib.sha256(weights).hexdigest()} | changes
    with zipfile.ZipFile(server.folder / "light.zip", "w") as archive:
        for name, content in tree(bundle).items():
            if name != "models/model.pt":
                archive.writestr(f"ball/{name}", content)
        archive.writestr("ball/large_files.yml", yaml.safe_dump({"large_files": [entry]}))
    return f"{server.url}/light.zip"


def test_large_files_are_downloaded_before_the_bundle_is_in_place(bundle, server, got):
    folder = fetch_bundle(light(bundle, server), got)
    assert (folder / "models" / "model.pt").read_bytes() == (bundle / "models" / "model.pt").read_bytes()


def test_large_files_need_a_hash_that_fits_and_a_path_inside(bundle, server, got, monkeypatch):
    make_bundle(got / "ball", "0.0.9")
    refused(light(bundle, server, hash_val=""), got, ValueError, r"entry 'models/model\.pt' lacks hash_val")
    refused(light(bundle, server, hash_val="0" * 64), got, ValueError, r"large files of 'ball' \(http.*hash check")
    refused(light(bundle, server, path="../../escaped"), got, ValueError, "path traversal")
    absent = f"{server.url}/absent.pt"
    refused(light(bundle, server, url=absent), got, OSError, rf"large files of 'ball' \({absent}\): .*404")


# ---- MONAI's own download, and the command line ---------------------------------------------------------------------


def run(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, "-m", *words], cwd=cwd, env=environment, capture_output=True, text=True)


def test_monai_and_fetch_get_the_same_bundle(repository, server, tmp_path):
    student = repository / "bundles" / "student"
    packed = pack_bundle(student, server.folder)
    url = f"{server.url}/{packed.path.name}"
    done = run(tmp_path, "monai.bundle", "download", "--name", "student", "--url", url, "--bundle_dir", "by_monai")
    assert done.returncode == 0, done.stderr
    done = run(tmp_path, "monai_kd", "fetch", url, "--bundle_dir", "by_us", "--sha256", packed.sha256)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fetched: by_us/student"
    assert tree(tmp_path / "by_us" / "student") == tree(tmp_path / "by_monai" / "student")
    with zipfile.ZipFile(packed.path) as archive:
        assert len(tree(tmp_path / "by_us" / "student")) == len(archive.namelist()) == packed.files


def test_the_command_line_ends_in_one_line(server, published, got, monkeypatch, capsys):
    cut = server.folder / "cut.zip"
    cut.write_bytes((server.folder / "ball_v0.1.0.zip").read_bytes()[:1000])
    for words in (
        (published, got, "--sha256", "ab" * 32),
        (published, got, "--sha256", "12"),
        (f"{server.url}/cut.zip", got),
        (f"{server.url}/absent.zip", got),
        (f"http://127.0.0.1:{closed_port()}/ball.zip", got),
        (published, got, "--name", "cube"),
        ("ball.zip", got),
        ("github:someone/kd/v1", got),
        ("hf:someone/ball", got),
    ):
        assert command_line(monkeypatch, "fetch", *words) == 1, words
        printed = capsys.readouterr()
        assert printed.err.startswith("error: "), words
        assert printed.err.count("\n") == 1, words
        assert "fetched" not in printed.out
    assert not got.exists()
