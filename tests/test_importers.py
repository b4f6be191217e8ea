"""The four published layouts: small made-up copies of each, and the real files against their reference."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.spatial.transform import Rotation

from fedjax_vp.data.head import direction_of_angles
from fedjax_vp.data.inspect import netllm_mae, netllm_windows, no_motion_deg, summary
from fedjax_vp.data.store import NAMES, read_original
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError

ARCHIVES = {
    "wu_mmsys17": ("netllm_viewports.tar.gz", "wu_mmsys17.parquet"),
    "jin_mmsys22": ("netllm_viewports.tar.gz", "jin_mmsys22.parquet"),
    "david_mmsys18": ("david_mmsys18_sampled.tar.gz", "david_mmsys18.parquet"),
    "avtrack360": ("avtrack360.tar.gz", "avtrack360_mmsys18.parquet"),
}
# mean error of no motion at 0.2, 0.4, 0.6, 1, 2, 3, 4, 5 s as published with the conversions, and the windows
NO_MOTION = {
    "david_mmsys18": (48735, (7.29, 14.24, 20.76, 32.46, 54.47, 68.18, 76.28, 80.67)),
    "avtrack360": (91639, (6.11, 11.90, 17.34, 27.11, 45.79, 58.15, 65.97, 70.61)),
    "jin_mmsys22": (548396, (3.40, 6.50, 9.32, 14.16, 22.42, 27.21, 30.24, 32.32)),
    "wu_mmsys17": (1216368, (2.82, 5.43, 7.84, 12.08, 19.67, 24.38, 27.68, 30.19)),
}
JIN_TEST_USERS = [
    str(user) for user in (83, 15, 3, 35, 48, 22, 55, 4, 45, 60, 26, 21, 44, 23, 53, 84, 59, 49, 7, 47, 30)
]
JIN_TEST_VIDEOS = ["4", "8", "14", "18", "24", "25"]

YAW = np.array([5.0, 10, 30, 60, 100, 140])  # left, degrees
ELEVATION = np.array([0.0, 5, -5, 20, 10, 0])
EXPECTED = direction_of_angles(YAW, ELEVATION)
TIME_S = np.arange(6) / 5


def _lines(*columns: np.ndarray) -> bytes:
    return "".join(",".join(f"{x:.9f}" for x in row) + "\n" for row in np.stack(columns, 1)).encode()


def _netllm(front: np.ndarray, offset_s: float = 0.0) -> bytes:
    """A file whose sight is ``front`` in the headset's world, with some roll."""
    roll = np.radians(np.array([0.0, 5, -10, 20, 15, 3]))
    pitch, yaw = [], []
    for a, f in zip(roll, front, strict=True):
        g = Rotation.from_euler("z", -a).apply(f)
        yaw.append(np.arcsin(g[0]) if g[2] >= 0 else np.pi - np.arcsin(g[0]))
        pitch.append(np.arctan(-g[1] / g[2]))
    degrees = [np.degrees(x) for x in (roll, np.array(pitch), np.array(yaw))]
    return _lines(TIME_S + offset_s, *degrees)


def _avtrack(**change: object) -> bytes:
    samples = [
        {"sec": t, "yaw": -y, "pitch": -e, "roll": 0} for t, y, e in zip(TIME_S, YAW, ELEVATION, strict=True)
    ]
    samples[0] |= change
    return json.dumps({"data": [{"filename": "7.mp4", "pitch_yaw_roll_data_hmd": samples}]}).encode()


x, y, z = EXPECTED.T
SMALL: dict[str, tuple[str, bytes]] = {
    "wu_mmsys17": (
        "data/viewports/Wu2017/video7/5Hz/simple_5Hz_user12.csv",
        _netllm(np.stack([-x, z, -y], 1)),
    ),
    "jin_mmsys22": (
        "data/viewports/Jin2022/video12/5Hz/simple_5Hz_user12.csv",
        _netllm(np.stack([x, z, y], 1), 120.0),
    ),
    "david_mmsys18": ("David_MMSys_18/sampled_dataset/7_Gaza/12", _lines(TIME_S, -x, y, z)),
    "avtrack360": ("AVTrack360_dataset/Head_rotation/12.json", _avtrack()),
}


def _folder(root: Path, name: str, content: bytes) -> Path:
    file = root / "copy" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return root / "copy"


def _zip(root: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(root / "copy.zip", "w") as archive:
        archive.writestr(name, content)
        archive.writestr("__MACOSX/" + name, b"resource fork")
    return root / "copy.zip"


def _tar(root: Path, name: str, content: bytes) -> Path:
    with tarfile.open(root / "copy.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("published-main/" + name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo(name.replace("12", "13"))
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return root / "copy.tar.gz"


@pytest.mark.parametrize("pack", [_folder, _zip, _tar])
@pytest.mark.parametrize("name", NAMES)
def test_small_copies(name: str, pack: Callable[[Path, str, bytes], Path], tmp_path: Path) -> None:
    traces = read_original(name, pack(tmp_path, *SMALL[name]))
    assert traces.user_ids == ("12",)
    assert traces.num_videos == 1
    assert traces.t0[0] == 0.0
    np.testing.assert_allclose(traces.direction[0], EXPECTED, atol=2e-6)
    assert traces.counts == {"traces_shorter_than_a_window": 1}
    if name in ("wu_mmsys17", "jin_mmsys22"):
        np.testing.assert_allclose(np.degrees(traces.channels["euler"][0, 0, 0]), 0, atol=1e-6)
        assert traces.channels["quaternion"].shape == (1, 6, 4)


def test_other_rate(tmp_path: Path) -> None:
    traces = read_original("avtrack360", _folder(tmp_path, *SMALL["avtrack360"]), rate_hz=10.0)
    assert traces.rate_hz == 10.0
    np.testing.assert_allclose(traces.direction[0, ::2], EXPECTED, atol=2e-6)


MALFORMED = {
    "columns": ("david_mmsys18", b"0.0,1,0,0\n0.2,1,0\n", "row 2: 3 column"),
    "more columns": ("david_mmsys18", b"0.0,1,0,0\n0.2,1,0,0,0\n", "row 2: 5 column"),
    "no number": ("wu_mmsys17", b"0.0,10,20,30\n0.2,ten,20,30\n", "row 2: roll is 'ten'"),
    "nan": ("david_mmsys18", b"0.0,1,0,0\n0.2,nan,0,0\n0.4,1,0,0\n", "row 2 .*NaN"),
    "not unit": ("david_mmsys18", b"0.0,1,0,0\n0.2,1,0,0\n0.4,1,1,0\n", "row 3 .*length 1.414"),
    "radians": ("jin_mmsys22", b"120,0.1,0.2,0.3\n120.2,0.1,0.2,1.3\n", "radians"),
    "empty": ("wu_mmsys17", b"", "simple_5Hz_user12.csv"),
    "one row": ("wu_mmsys17", b"0.0,10,20,30\n", "too short"),
    "binary": ("wu_mmsys17", b"\x93NUMPY\xff\xfe\x00", "row 1"),
    "no json": ("avtrack360", b"{'data': 1}", "not the JSON of AVTrack360"),
    "no list": ("avtrack360", b'{"data": 1}', "not a list"),
    "no yaw": (
        "avtrack360",
        b'{"data": [{"filename": "1.mp4", "pitch_yaw_roll_data_hmd": [{"sec": 0}]}]}',
        "'yaw'",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_fail_with_one_line_or_are_skipped(case: str, tmp_path: Path) -> None:
    name, content, message = MALFORMED[case]
    path = _folder(tmp_path, SMALL[name][0], content)
    with pytest.raises(UserError, match=message) as caught:
        read_original(name, path)
    assert "\n" not in str(caught.value)
    good = (
        SMALL[name][0].replace("user12", "user3").replace("Gaza/12", "Gaza/3").replace("/12.json", "/3.json")
    )
    _folder(tmp_path, good, SMALL[name][1])
    lines: list[str] = []
    traces = read_original(name, path, on_error="skip", warn=lines.append)
    assert traces.user_ids == ("3",)
    assert len(lines) == 1
    assert sum(n for reason, n in traces.counts.items() if reason.startswith("skipped_")) == 1


def test_a_session_given_twice(tmp_path: Path) -> None:
    name, content = SMALL["avtrack360"]
    twice = json.loads(content)
    twice["data"] *= 2
    path = _folder(tmp_path, name, json.dumps(twice).encode())
    with pytest.raises(UserError, match=r"data\[1\]: user 12, video 7 a second time"):
        read_original("avtrack360", path)
    assert read_original("avtrack360", path, on_error="skip").counts["skipped_duplicate"] == 1


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no file of wu_mmsys17 in it; it should hold Wu2017/video<j>"):
        read_original("wu_mmsys17", tmp_path / "empty")
    with pytest.raises(UserError, match="no such file or folder"):
        read_original("wu_mmsys17", tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(UserError, match="neither a folder nor"):
        read_original("wu_mmsys17", tmp_path / "notes.txt")
    path = _folder(tmp_path, SMALL["wu_mmsys17"][0], b"0.0,10,20,30\n")
    with pytest.raises(UserError, match="no usable session"):
        read_original("wu_mmsys17", path, on_error="skip")


@pytest.mark.parametrize("bad", ["../../evil/", "/", "a/../../"])
@pytest.mark.parametrize("pack", [_zip, _tar])
def test_unsafe_archives_are_refused(pack: Callable, bad: str, tmp_path: Path) -> None:
    name, content = SMALL["david_mmsys18"]
    if pack is _tar:
        with tarfile.open(tmp_path / "copy.tar.gz", "w:gz") as archive:
            member = tarfile.TarInfo(bad + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        path = tmp_path / "copy.tar.gz"
    else:
        path = _zip(tmp_path, bad + name, content)
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(UserError, match="unsafe path"):
        read_original("david_mmsys18", path)
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    traces = read_original("avtrack360", _tar(tmp_path, *SMALL["avtrack360"]))
    assert traces.user_ids == ("12",)  # the link claims to be user 13


def test_a_truncated_archive(tmp_path: Path) -> None:
    path = _tar(tmp_path, *SMALL["avtrack360"])
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match="damaged"):
        read_original("avtrack360", path)


@pytest.fixture(scope="module", params=NAMES)
def published(request: pytest.FixtureRequest, shared_data: Path) -> tuple[TraceSet, pl.DataFrame]:
    archive, reference = ARCHIVES[request.param]
    traces = read_original(request.param, shared_data / "original" / archive)
    return traces, pl.read_parquet(shared_data / "reference" / reference)


def test_published_files_against_the_reference(published: tuple[TraceSet, pl.DataFrame]) -> None:
    traces, reference = published
    users, videos = list(traces.user_ids), list(traces.video_ids)
    assert set(users) == set(reference["user"].unique().cast(pl.String))
    assert set(videos) == set(reference["video"].unique().cast(pl.String))

    def place(column: str, names: list[str]) -> np.ndarray:
        code_of = {name: code for code, name in enumerate(names)}
        return reference[column].cast(pl.String).replace_strict(code_of).to_numpy()

    # both in order of (user, video, grid point); the same sessions must hold the same points
    grid = np.round(reference["t"].to_numpy().astype(float) * 5).astype(int)
    keys = np.stack([place("user", users), place("video", videos), grid], axis=1)
    order = np.lexsort(keys.T[::-1])
    trace, sample = np.nonzero(traces.valid)
    ours = np.stack(
        [traces.user[trace], traces.video[trace], np.round(traces.t0[trace] * 5).astype(int) + sample], 1
    )
    np.testing.assert_array_equal(ours, keys[order])
    mine = traces.direction[trace, sample].astype(float)
    theirs = reference.select("x", "y", "z").to_numpy()[order].astype(float)
    chord = np.linalg.norm(mine - theirs, axis=1)
    error_deg = np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1)))
    assert np.median(error_deg) < 0.05
    assert error_deg.max() < 0.5


def test_published_no_motion_errors(published: tuple[TraceSet, pl.DataFrame]) -> None:
    traces, _ = published
    num_windows, expected = NO_MOTION[traces.name]
    error_of, found = no_motion_deg(traces)
    assert found == num_windows
    np.testing.assert_allclose(list(error_of.values()), expected, atol=0.05)


def test_published_head_channels(published: tuple[TraceSet, pl.DataFrame]) -> None:
    """The published angles rebuilt with SciPy look where the resampled directions do."""
    traces, _ = published
    if not traces.channels:
        assert traces.name not in ("wu_mmsys17", "jin_mmsys22")
        return
    now = traces.length // 2
    rows = np.arange(traces.num_traces)
    forward = Rotation.from_quat(np.roll(traces.channels["quaternion"][rows, now], -1, axis=1)).as_matrix()[
        :, :, 2
    ]
    sign = -1 if traces.name == "wu_mmsys17" else 1
    rebuilt = np.stack([sign * forward[:, 0], sign * forward[:, 2], forward[:, 1]], axis=1)
    assert np.abs(rebuilt - traces.direction[rows, now]).max() < 0.02
    assert np.median(np.abs(rebuilt - traces.direction[rows, now])) < 1e-4


def test_published_repairs_are_counted(published: tuple[TraceSet, pl.DataFrame]) -> None:
    traces, _ = published
    expected = {
        "wu_mmsys17": {"traces_out_of_order": 9, "rows_out_of_order": 23},
        "jin_mmsys22": {
            "holes": 4,
            "traces_cut_at_holes": 3,
            "rows_cut_at_holes": 300,
            "traces_shorter_than_a_window": 1,
        },
        "david_mmsys18": {},
        "avtrack360": {"traces_out_of_order": 29, "rows_out_of_order": 34},
    }
    assert traces.counts == expected[traces.name]
    numbers = summary(traces)
    assert numbers["sessions"] == numbers["users"] * numbers["videos"]
    assert numbers["sessions_without_window"] == expected[traces.name].get("traces_shorter_than_a_window", 0)


def test_netllm_protocol(published: tuple[TraceSet, pl.DataFrame]) -> None:
    traces, _ = published
    if traces.name != "jin_mmsys22":
        return
    trace, now = netllm_windows(traces, JIN_TEST_USERS, JIN_TEST_VIDEOS)
    assert round(netllm_mae(traces, trace, now), 2) == 9.76
    still = np.repeat(traces.direction[trace, now][:, None, :], 20, axis=1)
    assert netllm_mae(traces, trace, now, still) == pytest.approx(9.76, abs=0.03)
    # the true directions err only by the change of roll
    future = traces.direction[trace[:, None], now[:, None] + 1 + np.arange(20)[None, :]]
    assert netllm_mae(traces, trace, now, future) < 1.5
