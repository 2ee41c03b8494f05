"""The command that extends, with the models of a comparison."""

import json

import pytest
import yaml

from bipe_cli.main import app, run


def test_extend_writes_a_model_and_says_what_becomes_of_its_channels(finished, tmp_path, capsys):
    model = finished[0] / "runs/bipe-rope-0"
    arguments = ["--model", model, "--method", "yarn", "--factor", "4"]
    assert run(app, [str(part) for part in ["extend", *arguments, "--out", tmp_path / "long"]]) == 0
    assert "nearly position interpolation" in capsys.readouterr().out
    assert (
        run(app, [str(part) for part in ["extend", *arguments, "--out", tmp_path / "other", "--json"]]) == 0
    )
    described = json.loads(capsys.readouterr().out)
    before = json.loads((model / "config.json").read_text())
    assert described["unit"] == "segments"
    assert described["original"] == before["original_max_segments"] >= 1
    assert described["kept"] + described["between"] + described["interpolated"] == len(described["pairs"])
    assert (
        run(
            app,
            [
                str(part)
                for part in [
                    "generate",
                    "--model",
                    tmp_path / "long",
                    "--prompt",
                    "A",
                    "--max-new-tokens",
                    "3",
                ]
            ],
        )
        == 0
    )


def test_extend_trains_on_longer_text_and_goes_on_where_it_stopped(finished, texts, tmp_path, capsys):
    model, out = finished[0] / "runs/rope-0", tmp_path / "long"
    arguments = ["extend", "--model", model, "--method", "linear", "--factor", "2", "--out", out]
    training = ["--data", texts / "train", "--steps", "2", "--batch-size", "2"]
    assert run(app, [str(part) for part in [*arguments, *training]]) == 0
    assert "after 2 steps" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["extension"]["method"] == "linear"
    before = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    assert config["max_position_embeddings"] == 2 * before
    assert yaml.safe_load((out / "recipe.yaml").read_text())["data"]["train_length"] == 2 * before
    assert run(app, [str(part) for part in [*arguments, *training]]) == 0  # it is finished, and only loaded


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--method", "yarnn", "--factor", "4"], "Unknown method 'yarnn'"),
        (["--method", "yarn", "--factor", "0.5"], "at least 1.01"),
        (["--method", "yarn", "--factor", "4", "--steps", "3"], "both --data and --steps"),
        (["--method", "yarn", "--factor", "4", "--batch-size", "3"], "--batch_size is a setting of training"),
        (["--method", "yarn", "--factor", "4", "--parameters", "3"], "--parameters takes names and values"),
        (["--method", "yarn", "--factor", "4", "--parameters", "{a: 3}"], "Unknown parameter 'a'"),
        (["--method", "yarn", "--factor", "4", "--parameters", "["], "--parameters takes names and values"),
        (["--method", "yarn", "--factor", "4", "--data", "nowhere", "--steps", "3"], "nowhere"),
    ],
)
def test_extend_says_what_is_wrong_and_leaves_nothing(finished, tmp_path, capsys, options, reason):
    arguments = ["extend", "--model", finished[0] / "runs/rope-0", "--out", tmp_path / "long", *options]
    assert run(app, [str(part) for part in arguments]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_extend_writes_nothing_into_the_folder_of_the_model(finished, texts, capsys):
    model = finished[0] / "runs/rope-0"
    arguments = ["extend", "--model", model, "--method", "linear", "--factor", "2", "--out", model / "long"]
    before = sorted(model.iterdir())
    for training in ([], ["--data", texts / "train", "--steps", "2"]):
        assert run(app, [str(part) for part in [*arguments, *training]]) == 2
        assert "lies inside" in capsys.readouterr().err
    assert sorted(model.iterdir()) == before


def test_extend_refuses_a_folder_of_another_extension(finished, texts, tmp_path, capsys):
    model, out = finished[0] / "runs/rope-0", tmp_path / "long"

    def extend(*changes, base=model):
        training = ["--data", texts / "train", "--steps", "2", "--batch-size", "2", "--train-length", "32"]
        return run(
            app, [str(part) for part in ["extend", "--model", base, "--out", out, *training, *changes]]
        )

    assert extend("--method", "linear", "--factor", "2") == 0
    for changes, difference in [
        (["--method", "yarn", "--factor", "2"], "method is 'linear' there and 'yarn' here"),
        (["--method", "linear", "--factor", "4"], "factor is 2.0 there and 4.0 here"),
    ]:
        assert extend(*changes) == 2
        assert difference in capsys.readouterr().err
    assert extend("--method", "linear", "--factor", "2", base=finished[0] / "runs/bipe-rope-0") == 2
    assert "another extension" in capsys.readouterr().err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    arguments = ["--model", model, "--method", "linear", "--factor", "2", "--out", foreign]
    training = ["--data", texts / "train", "--steps", "2"]
    assert run(app, [str(part) for part in ["extend", *arguments, *training]]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "long", "long.start"]
