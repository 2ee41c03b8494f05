from pathlib import Path

import pytest
import yaml
from pydantic import Field, ValidationError

from bipe.comparison import Comparison
from bipe.training import Recipe, TrainingSettings, dump_recipe, load_recipe, parse_overrides
from bipe.training.reading import read_settings
from bipe.training.recipe import Settings

RECIPES = Path(__file__).parents[2] / "recipes"
MINIMAL = {"scheme": "bipe-rope", "data": {"train": ["text.txt"]}, "training": {"steps": 10}}


@pytest.fixture
def write(tmp_path):
    def write_recipe(**changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
        return path

    return write_recipe


@pytest.mark.parametrize(
    "path",
    [
        RECIPES / "tiny.yaml",
        RECIPES / "arithmetic" / "paper.yaml",
        *sorted((RECIPES / "language_modelling").glob("*.yaml")),
        *sorted((RECIPES / "scrolls").glob("*.yaml")),
        *sorted((RECIPES / "extension").glob("*.yaml")),
    ],
    ids=lambda path: f"{path.parent.stem}-{path.stem}",
)
def test_committed_recipes_are_valid_and_survive_a_dump(path, tmp_path):
    recipe = load_recipe(path)
    (tmp_path / "dumped.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "dumped.yaml") == recipe


def test_the_paper_size_recipe_has_the_batch_of_the_paper():
    recipe = load_recipe(RECIPES / "language_modelling" / "bipe-rope-151m.yaml")
    training, model = recipe.training, recipe.model
    assert training.batch_size * training.gradient_accumulation * 8 == 256
    assert (training.learning_rate, training.weight_decay, training.warmup_steps) == (1e-4, 0.01, 10_000)
    assert (training.schedule, training.schedule_steps, training.steps) == ("linear", 1_000_000, 500_000)
    assert (model.num_hidden_layers, model.num_attention_heads) == (12, 12)
    assert (model.hidden_size, model.intermediate_size, recipe.data.train_length) == (768, 3072, 1024)


def test_the_paper_size_recipes_of_tasks_have_the_papers_numbers():
    scrolls = load_recipe(RECIPES / "scrolls" / "paper.yaml")
    training = scrolls.training
    assert training.batch_size * training.gradient_accumulation * 8 == 64
    assert (training.learning_rate, training.steps, training.warmup_steps) == (1e-5, 5000, 50)
    assert scrolls.data.train_length == 8192
    arithmetic = load_recipe(RECIPES / "arithmetic" / "paper.yaml")
    assert arithmetic.training.steps * arithmetic.training.batch_size == pytest.approx(100 * 1e6, rel=1e-3)
    assert (arithmetic.training.learning_rate, arithmetic.model.attention_dropout) == (1e-4, 0.1)
    assert (arithmetic.model.hidden_size, arithmetic.model.num_hidden_layers) == (256, 3)


def test_overrides_are_typed_by_the_setting(write):
    overrides = {
        "training.steps": "250",
        "learning_rate": "3e-4",
        "bf16": "true",
        "validation": "null",
        "train": "[a.txt, b.txt]",
        "inter": "{type: alibi, scale: 20.0}",
        "tokenizer": "no",
    }
    recipe = load_recipe(write(), overrides)
    assert recipe.training.steps == 250
    assert recipe.training.learning_rate == 3e-4
    assert recipe.training.bf16 is True
    assert recipe.data.validation is None
    assert recipe.data.train == ["a.txt", "b.txt"]
    assert recipe.data.tokenizer == "no"
    assert recipe.model.inter == {"type": "alibi", "scale": 20.0}


def test_a_rate_that_yaml_reads_as_text_is_a_number(write):
    # PyYAML takes 1e-4, without a point, for a string.
    path = write()
    path.write_text(path.read_text().replace("steps: 10", "steps: 10\n  learning_rate: 1e-4"))
    assert load_recipe(path).training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "rope"}, r"unknown setting 'schema', choose one of: scheme, start, rule, seed, data"),
        (
            {"training": {"steps": 5, "step": 6}},
            r"unknown setting 'training.step', choose one of: steps, batch",
        ),
        ({"training": {}}, r"the setting 'training.steps' is missing"),
        ({"training": {"steps": 0}}, r"training.steps: .*greater than or equal to 1, got 0"),
        ({"training": {"steps": 10.5}}, r"training.steps: .*integer.*got 10.5"),
        ({"training": {"steps": 10**12}}, r"training.steps: .*less than or equal to 1000000000"),
        (
            {"training": {"steps": 10, "learning_rate": -1}},
            r"training.learning_rate: .*greater than 0, got -1",
        ),
        ({"training": {"steps": 10, "learning_rate": ".nan"}}, r"training.learning_rate: .*got '.nan'"),
        ({"training": {"steps": 10, "schedule": "constant"}}, r"training.schedule: .*'cosine' or 'linear'"),
        ({"training": {"steps": 10, "warmup_steps": 10}}, r"warmup_steps must be below the 10 steps"),
        (
            {"training": {"steps": 10, "schedule_steps": 9}},
            r"schedule_steps must be at least steps, 10; got 9",
        ),
        ({"data": {"train": []}}, r"data.train: .*at least 1 item"),
        ({"data": {}}, r"data: give one of train, the text, arithmetic or scrolls"),
        (
            {"data": {"train": ["a"], "arithmetic": {}}},
            r"data: give one of train, the text, arithmetic or scrolls",
        ),
        (
            {"data": {"arithmetic": {}, "vocab_size": 300}},
            r"data: vocab_size is a setting of text; leave it out beside arithmetic",
        ),
        ({"data": {"arithmetic": {"operators": 0}}}, r"data.arithmetic.operators: .*got 0"),
        ({"data": {"train": ["a"], "train_length": 1}}, r"data.train_length: .*got 1"),
        ({"model": {"hidden_size": 0}}, r"model.hidden_size: .*got 0"),
        ({"model": {"attention_dropout": 1.0}}, r"model.attention_dropout: .*less than 1, got 1.0"),
        ({"seed": -1}, r"seed: .*got -1"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(write, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(write(**changes))
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, ValidationError)


def test_an_unknown_override_lists_the_settings(write):
    with pytest.raises(
        ValueError,
        match=r"Unknown setting 'training.stepz'. Did you mean 'training.steps'\? Choose one of: scheme, .*training.steps",
    ):
        load_recipe(write(), {"training.stepz": "3"})


def test_an_override_that_stands_for_several_settings_is_refused():
    class Part(Settings):
        size: int = 1

    class Whole(Settings):
        left: Part = Field(default_factory=Part)
        right: Part = Field(default_factory=Part)

    assert read_settings(Whole, None, {"left.size": "2"}).left.size == 2
    with pytest.raises(ValueError, match=r"'size' stands for several; write one of: left.size, right.size"):
        read_settings(Whole, None, {"size": "2"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("scheme: [rope", "is no plain YAML: line 2"),
        ("- rope", "must hold a mapping with scheme, .*; got list"),
        ("", "must hold a mapping with scheme, .*; got NoneType"),
    ],
)
def test_a_file_that_is_no_recipe_says_so(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content + "\n")
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_an_override_inside_what_is_no_group_says_so(write):
    with pytest.raises(ValueError, match="training must hold settings by name; got 5"):
        load_recipe(write(training=5), {"training.steps": "3"})


def test_settings_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Recipe.model_validate(MINIMAL).seed = 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steps", "3"], "given as --name value; got 'steps'"),
        (["--steps"], "--steps has no value"),
        (["--training.bf16", "--training.steps", "5"], "--training.bf16 has no value"),
        (["--steps", "3", "--steps=4"], "--steps is given twice"),
    ],
)
def test_a_command_line_that_is_no_list_of_settings_says_so(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse_overrides(arguments)


def test_a_setting_has_one_value(write):
    with pytest.raises(ValueError, match=r"training.steps is given twice"):
        load_recipe(write(), {"training.steps": "3", "steps": "4"})


def test_every_setting_is_documented():
    for settings in (Recipe, *(field.annotation for field in Recipe.model_fields.values())):
        for name, field in getattr(settings, "model_fields", {}).items():
            has_group = isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
            assert field.description or has_group, name


def test_defaults_run():
    assert TrainingSettings(steps=1).steps == 1


def test_settings_of_a_group_that_may_be_left_out(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("start: model\ndata: {train: text}\ntraining: {steps: 3}\n")
    assert load_recipe(path).training.lora is None
    assert load_recipe(path, {"lora": "{rank: 4}"}).training.lora.rank == 4
    assert load_recipe(path, {"training.lora.rank": "4", "alpha": "2"}).training.lora.alpha == 2
    with pytest.raises(ValueError, match=r"unknown setting 'training.lora.rnk', choose one of: rank, alpha"):
        load_recipe(path, {"lora": "{rnk: 8}"})


def test_arithmetic_from_a_trained_model_has_that_models_rule(tmp_path: Path) -> None:
    data, training = {"arithmetic": {"operators": 2}}, {"steps": 1}
    assert Recipe.model_validate({"scheme": "rope", "data": data, "training": training}).rule == "equals"
    recipe = Recipe.model_validate({"start": "model", "data": data, "training": training})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    with pytest.raises(ValueError, match="the rule is that of start"):
        Recipe.model_validate({"start": "model", "rule": "equals", "data": data, "training": training})


def test_a_value_that_was_typed_is_not_told_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("scheme: rope\ndata: {train: [stdlib]}\ntraining: {steps: 10}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^training\.steps: .*got '0'$"):
        load_recipe(path, {"steps": "0"})
    path.write_text("scheme: rope\ndata: {train: [stdlib]}\ntraining: {steps: 0}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"recipe\.yaml: training\.steps: .*got 0$"):
        load_recipe(path, {"batch_size": "2"})


@pytest.mark.parametrize(
    ("typed", "meant"), [("stepss", "steps"), ("schema", "scheme"), ("modl.hidden_size", "model.hidden_size")]
)
def test_a_mistyped_setting_is_told_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
        read_settings(Recipe, None, {typed: "1"})


def test_recipes_of_the_package_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("recipes/tiny.yaml").scheme == load_recipe("tiny.yaml").scheme == "bipe-rope"
    (tmp_path / "tiny.yaml").write_text(
        "scheme: alibi\ndata: {train: [stdlib]}\ntraining: {steps: 20}\n", "utf-8"
    )
    assert load_recipe("tiny.yaml").scheme == "alibi", "a file of one's own comes first"
    with pytest.raises(
        ValueError, match=r"cannot be read: No such file or directory\. Those of the package: "
    ):
        load_recipe("recipes/nothing.yaml")


def test_a_recipe_for_another_command_says_which() -> None:
    with pytest.raises(ValueError, match="recipe of a comparison, for bipe compare --recipe"):
        load_recipe("recipes/comparisons/passkey.yaml")
    with pytest.raises(ValueError, match="recipe of a single model, for bipe train"):
        read_settings(Comparison, "recipes/tiny.yaml")
