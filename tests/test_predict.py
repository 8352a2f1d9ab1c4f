"""Prediction on small videos, in this process, against a slow reference version."""

import csv
import json
import shutil

import av
import cv2
import numpy as np
import pytest
import torch

from inference import ensemble as ensembles
from inference import extraction, pool, predict
from inference.aggregate import winner
from inference.members import plain_members
from preprocessing.faces import INFERENCE_THRESHOLDS, FaceDetector, half_size
from runtime.cli import MachineError, UserError
from tests.media import FAKE, LONE, REAL, random_frames, write_sound, write_video
from tests.test_crops import slow_crop
from tests.test_video import opencv_frames
from training.checkpoint import load_classifier


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def run(test_dir, output, checkpoints, *options):
    """Predict with the checkpoints `one` and `two`."""
    arguments = [
        f"--test-dir={test_dir}",
        f"--output={output}",
        f"--weights-dir={checkpoints}",
        *("--models", "one", "two"),
        "--workers=0",
        "--device=cpu",
        *map(str, options),
    ]
    return predict.main(arguments)


def members(checkpoints):
    return plain_members([checkpoints / "one", checkpoints / "two"])


@pytest.fixture(scope="module")
def videos(dfdc, tmp_path_factory):
    """Three valid videos, and three that cannot be predicted."""
    folder = tmp_path_factory.mktemp("videos")
    for part, name in ((0, REAL), (0, FAKE), (3, LONE)):
        shutil.copy(dfdc / f"dfdc_train_part_{part}" / f"{name}.mp4", folder)
    write_video(folder / "no face.mp4", random_frames(5))
    write_sound(folder / "sound.mp4")
    (folder / "text.mp4").write_text("no video")
    (folder / "notes.txt").write_text("is ignored")
    return folder


@pytest.fixture(scope="module")
def predicted(videos, checkpoints, tmp_path_factory):
    """A folder with the submission, faces.csv and the report of `videos`."""
    folder = tmp_path_factory.mktemp("predicted")
    output, faces = folder / "submission.csv", folder / "faces.csv"
    assert run(videos, output, checkpoints, "--faces-csv", faces) == 0
    return folder


def test_one_row_for_each_video_sorted(predicted):
    rows = read_rows(predicted / "submission.csv")
    assert [row["filename"] for row in rows] == [
        f"{REAL}.mp4",
        f"{FAKE}.mp4",
        f"{LONE}.mp4",
        "no face.mp4",
        "sound.mp4",
        "text.mp4",
    ]
    labels = [float(row["label"]) for row in rows]
    assert labels[3:] == [0.5, 0.5, 0.5]
    assert all(0 < label < 1 and label != 0.5 for label in labels[:3])


def test_every_missing_answer_has_its_reason(predicted):
    reasons = {
        row["filename"]: row["reason"]
        for row in read_rows(predicted / "submission.report.csv")
    }
    assert reasons.keys() == {"no face.mp4", "sound.mp4", "text.mp4"}
    assert reasons["no face.mp4"] == "no face found in 5 frames"
    assert reasons["sound.mp4"] == "holds no video stream"
    assert reasons["text.mp4"].startswith("not a readable video")
    assert sorted(path.name for path in predicted.iterdir()) == [
        "faces.csv",
        "submission.csv",
        "submission.report.csv",
    ]


def slow_input(crop, size):
    """Resize the longer side, centre on black, normalise in float64. Returns CHW."""
    height, width = crop.shape[:2]
    scale = size / max(height, width)
    if height >= width:
        height, width = size, int(width * scale)
    else:
        height, width = int(height * scale), size
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    square = np.zeros((size, size, 3))
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = cv2.resize(
        crop, (width, height), interpolation=interpolation
    )
    normalized = (square / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return normalized.transpose(2, 0, 1)


@pytest.mark.parametrize("name", [REAL, LONE])
def test_label_and_faces_equal_the_slow_way(predicted, videos, checkpoints, name):
    """OpenCV decodes all frames; one frame a detector call, one face a forward pass."""
    frames = opencv_frames(videos / f"{name}.mp4")
    assert len(frames) == 24  # fewer than 32, so each frame is used once
    detector = FaceDetector(INFERENCE_THRESHOLDS)
    models = {model: load_classifier(checkpoints / model) for model in ("one", "two")}
    names, expected, by_model = [], [], {model: [] for model in models}
    for number, frame in enumerate(frames):
        for box in detector([half_size(frame)])[0].boxes:
            for model, (network, settings) in models.items():
                image = slow_input(slow_crop(frame, box), settings.size)
                with torch.no_grad():
                    logit = network(torch.from_numpy(image).float()[None])
                probability = torch.sigmoid(logit).item()
                by_model[model].append(probability)
                names.append(model)
                full_box = [int(2 * v) for v in box]
                expected.append((number, number / 25, *full_box, probability))
    rows = read_rows(predicted / "faces.csv")
    rows = [row for row in rows if row["video"] == f"{name}.mp4"]
    assert [row["model"] for row in rows] == names
    columns = ("frame", "time", "x1", "y1", "x2", "y2", "probability")
    got = [[float(row[column]) for column in columns] for row in rows]
    np.testing.assert_allclose(got, expected, atol=1e-4)
    label = np.mean([winner(np.array(scores)) for scores in by_model.values()])
    rows = read_rows(predicted / "submission.csv")
    labels = {row["filename"]: float(row["label"]) for row in rows}
    assert labels[f"{name}.mp4"] == pytest.approx(label, abs=1e-4)


def test_files_that_are_not_predicted_are_said(
    predicted, videos, checkpoints, tmp_path, capsys
):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(videos / f"{FAKE}.mp4", folder / "clip.3gp")
    for name in ("a.ts", "b.ts", "c.gif", "d.FLV", "._clip.3gp", "labels.csv"):
        (folder / name).touch()
    (folder / "more").mkdir()
    assert run(folder, tmp_path / "s.csv", checkpoints) == 0
    printed = capsys.readouterr().err
    assert "4 not used (a.ts, b.ts, c.gif, …): not read: convert" in printed
    assert "1 not used (more): folders, which are not searched" in printed
    (row,) = read_rows(tmp_path / "s.csv")
    expected = {row["filename"]: row for row in read_rows(predicted / "submission.csv")}
    assert row["filename"] == "clip.3gp"
    assert row["label"] == expected[f"{FAKE}.mp4"]["label"]
    rows = read_rows(tmp_path / "s.report.csv")
    names = [row["filename"] for row in rows]
    assert sorted(names) == ["._clip.3gp", "a.ts", "b.ts", "c.gif", "d.FLV", "more"]
    assert all(row["reason"].startswith("not predicted: ") for row in rows)


def test_a_single_video_gets_the_label_it_has_among_others(
    predicted, videos, checkpoints, tmp_path
):
    assert run(videos / f"{FAKE}.mp4", tmp_path / "one.csv", checkpoints) == 0
    (row,) = read_rows(tmp_path / "one.csv")
    assert row in read_rows(predicted / "submission.csv")


def test_how_many_frames_are_searched_at_a_time_changes_nothing(
    predicted, videos, checkpoints, tmp_path, monkeypatch
):
    monkeypatch.setattr(extraction, "DETECTED_PIXELS", 1)
    video, faces = videos / f"{LONE}.mp4", tmp_path / "faces.csv"
    assert run(video, tmp_path / "s.csv", checkpoints, "--faces-csv", faces) == 0
    expected = read_rows(predicted / "faces.csv")
    expected = [row for row in expected if row["video"] == f"{LONE}.mp4"]
    assert read_rows(faces) == expected


def test_faces_of_several_videos_in_one_batch_come_back_to_their_videos(
    videos, checkpoints
):
    """As on a GPU. The second video has no face; a batch spans the first and third."""
    ensemble = ensembles.Ensemble(members(checkpoints), "cpu")
    names = (f"{REAL}.mp4", "no face.mp4", f"{LONE}.mp4")
    found = [
        extraction.extract_faces(videos / name, ensemble.wanted, "cpu")
        for name in names
    ]
    alone = [ensemble([faces])[0] for faces in found]
    ensemble.batch, ensemble._in_batches = 7, ensemble._on_gpu
    for together, expected in zip(ensemble(found), alone, strict=True):
        for ours, theirs in zip(together, expected, strict=True):
            assert len(ours) == len(theirs)
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_worker_processes_change_nothing(predicted, videos, checkpoints, tmp_path):
    assert run(videos, tmp_path / "s.csv", checkpoints, "--workers", "2") == 0
    for name in ("submission.csv", "submission.report.csv"):
        ours = tmp_path / name.replace("submission", "s")
        assert ours.read_text() == (predicted / name).read_text()


def test_an_interrupted_run_goes_on(
    predicted, videos, checkpoints, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "submission.csv"
    calls = []

    def stop_at_the_third(ensemble, found, grad_cam, real=pool.predict_batch):
        calls.append(found)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(ensemble, found)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pool, "predict_batch", stop_at_the_third)
        run(videos, output, checkpoints)
    journal = tmp_path / "submission.csv.partial.jsonl"
    assert len(journal.read_text().splitlines()) == 3 and not output.exists()
    with open(journal, "a") as file:
        file.write('{"filename": "half a li')
    assert run(videos, output, checkpoints) == 0
    assert "going on: 2 of 6 videos are done" in capsys.readouterr().out
    assert output.read_text() == (predicted / "submission.csv").read_text()
    assert not journal.exists()


def test_another_runs_journal_is_not_continued(videos, checkpoints, tmp_path, capsys):
    journal = tmp_path / "s.csv.partial.jsonl"
    lines = [{"test_dir": "elsewhere"}, {"filename": f"{FAKE}.mp4", "label": 0}]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(videos / f"{FAKE}.mp4", tmp_path / "s.csv", checkpoints) == 0
    assert "going on" not in capsys.readouterr().out
    assert float(read_rows(tmp_path / "s.csv")[0]["label"]) > 0


def test_mistakes_say_what_to_do(videos, checkpoints, tmp_path):
    arguments = [
        f"--test-dir={videos}",
        f"--output={tmp_path / 's.csv'}",
        f"--weights-dir={tmp_path}",
    ]
    with pytest.raises(
        UserError, match=r"final_111.*\(7 of 7 are missing\).*weights/download.sh"
    ):
        predict.main(arguments)
    with pytest.raises(UserError, match="no such folder or video"):
        run(tmp_path / "none", tmp_path / "s.csv", checkpoints)
    with pytest.raises(UserError, match="holds no video"):
        run(checkpoints, tmp_path / "s.csv", checkpoints)
    assert not list(tmp_path.iterdir())


def test_networks_of_one_name_are_told_apart(predicted, videos, checkpoints, tmp_path):
    """a/one is `one` and b/one is `two`; the label is that of `one` and `two`."""
    for folder, name in (("a", "one"), ("b", "two")):
        (tmp_path / folder).mkdir()
        shutil.copy(checkpoints / name, tmp_path / folder / "one")
    arguments = [
        f"--test-dir={videos / f'{FAKE}.mp4'}",
        f"--output={tmp_path / 's.csv'}",
        f"--weights-dir={tmp_path}",
        "--workers=0",
        "--device=cpu",
    ]
    assert predict.main([*arguments, "--models", "a/one", "b/one"]) == 0
    assert read_rows(tmp_path / "s.csv")[0] in read_rows(predicted / "submission.csv")
    with pytest.raises(UserError, match="a/one: is given twice"):
        predict.main([*arguments, "--models", "a/one", "a/one"])


def test_networks_that_want_other_faces_are_refused(videos, checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints, tmp_path / "weights")
    checkpoint = torch.load(folder / "two", weights_only=True)
    checkpoint["config"]["input"]["margin_parts"] = 4
    torch.save(checkpoint, folder / "two")
    with pytest.raises(UserError, match="two: expects other thresholds or margins"):
        run(videos, tmp_path / "s.csv", folder)


def test_a_video_cut_in_half_is_judged_by_what_is_left(videos, checkpoints, tmp_path):
    """The index at the start of the MP4 announces 24 frames; about half are present."""
    path, faststart = tmp_path / "cut.mp4", {"movflags": "faststart"}
    with (
        av.open(str(videos / f"{REAL}.mp4")) as source,
        av.open(str(path), "w", options=faststart) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    assert run(path, tmp_path / "s.csv", checkpoints) == 0
    (row,) = read_rows(tmp_path / "s.csv")
    (report,) = read_rows(tmp_path / "s.report.csv")
    assert 0 < float(row["label"]) < 1 and float(row["label"]) != 0.5
    decoded = int(report["faces"])  # one face in each frame
    assert 3 < decoded < 24
    # the last frame that is there is damaged
    assert report["reason"] == (
        f"the file is cut short: it holds {decoded + 1} of 24 frames; "
        f"only {decoded} of {decoded + 1} frames could be decoded"
    )


def test_an_error_that_is_not_the_videos_is_never_a_half(
    videos, checkpoints, tmp_path, monkeypatch
):
    def fail(*_):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr("inference.extraction.half_size", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        run(videos / f"{REAL}.mp4", tmp_path / "s.csv", checkpoints)
    assert not (tmp_path / "s.csv").exists()


def short_of_memory(limit, real):
    """A network that runs out of memory for more than `limit` faces."""

    def scores(ensemble, number, images):
        if len(images) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(ensemble, number, images)

    return scores


@pytest.mark.slow
def test_a_gpu_that_is_short_of_memory_gets_smaller_batches(
    videos, checkpoints, monkeypatch, capsys
):
    ensemble = ensembles.Ensemble(members(checkpoints), "cpu")
    faces = extraction.extract_faces(videos / f"{LONE}.mp4", ensemble.wanted, "cpu")
    (expected,) = ensemble([faces])
    ensemble._in_batches = ensemble._on_gpu
    monkeypatch.setattr(
        ensembles.Ensemble, "_scores", short_of_memory(3, ensembles.Ensemble._scores)
    )
    (got,) = ensemble([faces])
    assert ensemble.batch == 2 and "2 faces at a time" in capsys.readouterr().err
    for ours, theirs in zip(got, expected, strict=True):
        assert len(ours) > 8
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    monkeypatch.setattr(
        ensembles.Ensemble, "_scores", short_of_memory(0, ensembles.Ensemble._scores)
    )
    with pytest.raises(MachineError, match="not enough GPU memory for one face"):
        ensemble([faces])


def test_any_other_error_of_the_gpu_ends_the_run(
    videos, checkpoints, tmp_path, monkeypatch
):
    def fail(*_):
        raise torch.AcceleratorError(
            "CUDA error: an illegal memory access was encountered"
        )

    monkeypatch.setattr(ensembles.Ensemble, "_scores", fail)
    with pytest.raises(MachineError, match="^cpu: CUDA error: an illegal memory"):
        run(videos / f"{REAL}.mp4", tmp_path / "s.csv", checkpoints)
    assert not (tmp_path / "s.csv").exists()


def test_a_detector_that_is_short_of_memory_sees_fewer_images_at_a_time(
    videos, monkeypatch
):
    images = [half_size(frame) for frame in opencv_frames(videos / f"{LONE}.mp4")][:7]
    detector = FaceDetector(INFERENCE_THRESHOLDS)
    expected, real = detector(images), FaceDetector._detect

    def detect(self, images, batched_nms):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, images, batched_nms)

    monkeypatch.setattr(FaceDetector, "_detect", detect)
    for ours, theirs in zip(detector(images), expected, strict=True):
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-4)
    # the training boxes need all images in one batch
    with pytest.raises(MachineError, match="not enough GPU memory.*fewer --workers"):
        detector(images, batched_nms=True)


@pytest.mark.slow
def test_a_network_that_answers_with_no_number_is_an_error(
    videos, checkpoints, tmp_path
):
    folder = shutil.copytree(checkpoints, tmp_path / "weights")
    checkpoint = torch.load(folder / "two", weights_only=True)
    checkpoint["state_dict"]["fc.weight"][0, 3] = float("nan")
    torch.save(checkpoint, folder / "two")
    with pytest.raises(
        UserError, match="two: answers with numbers that are not finite"
    ):
        run(videos / f"{REAL}.mp4", tmp_path / "s.csv", folder)
    assert not (tmp_path / "s.csv").exists()


def test_a_gpu_that_is_not_there(videos, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        MachineError, match="--device cuda:1: PyTorch finds no GPU here"
    ):
        run(videos, tmp_path / "s.csv", checkpoints, "--device", "cuda:1")


def test_a_list_gives_its_rows_in_its_order(
    videos, checkpoints, predicted, tmp_path, capsys
):
    """In sub-folders; what is not there, leaves the folder or is twice is said."""
    root, output = tmp_path / "test", tmp_path / "submission.csv"
    (root / "x" / "y").mkdir(parents=True)
    shutil.copy(videos / f"{REAL}.mp4", root / "x" / "y" / "same.mp4")
    shutil.copy(videos / f"{FAKE}.mp4", root / "x" / "same.mp4")
    listed = tmp_path / "sample_submission.csv"
    listed.write_text(
        "filename,label\nz.mp4,0.5\nx/y/same.mp4,0.5\n../out.mp4,0.5\nx/same.mp4,0.5\n"
        "x/./same.mp4,0.5\n"
    )
    report = tmp_path / "pages"
    options = ["--list", listed, "--report", report, "--faces-csv", tmp_path / "f.csv"]
    assert run(root, output, checkpoints, *options) == 0
    rows = read_rows(output)
    names = ["z.mp4", "x/y/same.mp4", "../out.mp4", "x/same.mp4"]
    assert [row["filename"] for row in rows] == names
    alone = {
        row["filename"]: row["label"] for row in read_rows(predicted / "submission.csv")
    }
    assert [row["label"] for row in rows] == [
        *("0.5", alone[f"{REAL}.mp4"], "0.5", alone[f"{FAKE}.mp4"]),
    ]
    reasons = read_rows(tmp_path / "submission.report.csv")
    assert [row["filename"] for row in reasons] == ["z.mp4", "../out.mp4"]
    assert "listed, but " in reasons[0]["reason"]
    assert "is no path inside" in reasons[1]["reason"]
    assert "x/./same.mp4 is listed twice" in capsys.readouterr().err
    assert {row["video"] for row in read_rows(tmp_path / "f.csv")} == {
        *("x/y/same.mp4", "x/same.mp4"),
    }
    assert len(list((report / "videos").glob("*.html"))) == 4
    (tmp_path / "paths.csv").write_text("path,label\nx/same.mp4,1\n")
    assert run(root, output, checkpoints, "--list", tmp_path / "paths.csv") == 0
    assert [row["filename"] for row in read_rows(output)] == ["x/same.mp4"]


def test_all_folders_below(videos, checkpoints, tmp_path):
    (tmp_path / "test" / "b").mkdir(parents=True)
    shutil.copy(videos / f"{REAL}.mp4", tmp_path / "test" / "b" / "1.mp4")
    shutil.copy(videos / "no face.mp4", tmp_path / "test" / "a.mp4")
    output = tmp_path / "s.csv"
    assert run(tmp_path / "test", output, checkpoints, "--recursive") == 0
    assert [row["filename"] for row in read_rows(output)] == ["a.mp4", "b/1.mp4"]


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "cannot be read"),
        ("name\na.mp4\n", "columns filename; it has name"),
        ("filename\n", "lists no video"),
    ],
)
def test_a_list_that_is_none(videos, checkpoints, tmp_path, text, words):
    if text is not None:
        (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        run(videos, tmp_path / "s.csv", checkpoints, "--list", tmp_path / "list.csv")


def test_names_in_a_list_that_differ_a_little(videos, checkpoints, tmp_path):
    """Without ending, another case of the ending, blanks; not where two would fit."""
    root = tmp_path / "test"
    root.mkdir()
    for name in ("one.mp4", "two.MP4", "three.mp4", "three.mov"):
        shutil.copy(videos / "no face.mp4", root / name)
    listed = tmp_path / "l.csv"
    listed.write_text('filename\none\ntwo.mp4\n"one.mov "\nthree\n')
    assert run(root, tmp_path / "s.csv", checkpoints, "--list", listed) == 0
    reasons = {
        row["filename"]: row["reason"] for row in read_rows(tmp_path / "s.report.csv")
    }
    assert reasons["one"] == reasons["two.mp4"] == "no face found in 5 frames"
    assert "is no file" in reasons["three"] and "is no file" in reasons["one.mov "]
