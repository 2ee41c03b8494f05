import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bipe import BipeForCausalLM
from bipe.data import encode, load_documents
from bipe.data.arithmetic import ArithmeticBlocks
from bipe.models.initialization import initialize_by_name
from bipe.segmentation import TokenSet
from bipe.segmentation.statistics import mean_tokens_per_segment
from bipe.training import Recipe, load_recipe, train_recipe
from bipe.training.order import SeededOrder
from bipe.training.trainer import validation_loss

SENTENCE = "The cat sat on the mat. The dog saw it there, and lay down beside it.\n"


@pytest.fixture
def make_recipe(tmp_path):
    def make(scheme="bipe-rope", **changes):
        texts = tmp_path / "texts"
        texts.mkdir(exist_ok=True)
        for name in ("one", "two"):
            (texts / f"{name}.txt").write_text(f"{name.title()}.\n" + SENTENCE * 120)
        values = {
            "scheme": scheme,
            "data": {"train": str(texts), "vocab_size": 280, "train_length": 32},
            "model": {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "intermediate_size": 48,
            },
            "training": {"steps": 3, "batch_size": 4},
        }
        return Recipe.model_validate({**values, **changes})

    return make


def ignore(row):
    pass


def refuse(row):
    raise AssertionError("nothing should be trained")


def test_a_recipe_leaves_model_tokenizer_and_resolved_recipe(make_recipe, tmp_path):
    recipe = make_recipe()
    trained = train_recipe(recipe, tmp_path / "run", on_progress=ignore)
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    assert [set(row) for row in trained.history][-1] >= {"validation_perplexity"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    ids = torch.tensor([tokenizer.encode("The cat sat")])
    assert torch.equal(model(ids).logits, trained.model(ids).logits)
    assert model.config.intra == {"type": "learned", "max_offset": 32}
    assert model.config.scheme == "bipe-rope"
    ends = TokenSet.from_tokenizer(tokenizer, rule="paper").to_spec()["end_token_ids"]
    assert model.config.segmenter["end_token_ids"] == ends


def test_the_automatic_scale_is_the_mean_segment_of_the_text_trained_on(make_recipe, tmp_path):
    recipe = make_recipe("bipe-alibi-auto")
    model = train_recipe(recipe, tmp_path / "run", on_progress=ignore).model
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    documents = [
        ids[: len(ids) - len(ids) // 20] for ids in encode(load_documents(recipe.data.train), tokenizer)
    ]
    expected = mean_tokens_per_segment(documents, TokenSet.from_tokenizer(tokenizer, rule="paper"), cap=32)
    assert model.config.inter == {"type": "alibi", "scale": expected}
    inter = {"inter": {"type": "alibi2", "scale": "auto"}}
    other = make_recipe("bipe-rope", model=recipe.model.model_copy(update=inter).model_dump())
    model = train_recipe(other, tmp_path / "other", on_progress=ignore).model
    assert model.config.inter == {"type": "alibi2", "scale": expected}


def test_the_dictionaries_of_a_recipe_replace_the_schemes(make_recipe, tmp_path):
    model = make_recipe().model.model_copy(update={"segmenter": {"type": "fixed_length", "n": 4}})
    trained = train_recipe(make_recipe(model=model.model_dump()), tmp_path / "run", on_progress=ignore)
    assert trained.model.config.segmenter == {"type": "fixed_length", "n": 4}
    assert trained.model.config.max_trained_offset == 3


def test_a_folder_is_refused_to_another_recipe_and_loaded_for_the_same(make_recipe, tmp_path):
    recipe = make_recipe()
    train_recipe(recipe, tmp_path / "run", on_progress=ignore)
    with pytest.raises(ValueError, match="another run: seed is 0 there and 5 here"):
        train_recipe(make_recipe(seed=5), tmp_path / "run")
    with pytest.raises(ValueError, match="already holds this run"):
        train_recipe(recipe, tmp_path / "run", resume=False)
    for text in (tmp_path / "texts").iterdir():
        text.unlink()
    assert train_recipe(recipe, tmp_path / "run", on_progress=refuse).history


def test_an_interrupted_recipe_goes_on(make_recipe, tmp_path):
    def interrupt(row):
        if row["step"] == 1:
            raise KeyboardInterrupt

    whole = train_recipe(make_recipe(), tmp_path / "whole", on_progress=ignore)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(make_recipe(), tmp_path / "broken", on_progress=interrupt)
    resumed = train_recipe(make_recipe(), tmp_path / "broken", on_progress=ignore)
    assert torch.equal(resumed.model.lm_head.weight, whole.model.lm_head.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "bipe-rop"}, "Unknown scheme 'bipe-rop'. Choose one of: alibi, "),
        ({"rule": "full-stop"}, "Unknown rule 'full-stop'. Choose one of: block, equals, file, line, "),
        (
            {"model": {"hidden_size": 30, "num_attention_heads": 4}},
            "multiple of num_attention_heads; got 30 and 4",
        ),
        ({"model": {"num_attention_heads": 8, "num_key_value_heads": 3}}, "multiple of num_key_value_heads"),
        (
            {"model": {"hidden_size": 2**16, "num_hidden_layers": 2000, "intermediate_size": 2**17}},
            r"has 85,899,\d+,\d+,\d+ parameters; training it needs 1,280,\d+ GiB",
        ),
    ],
)
def test_a_wrong_name_or_size_is_refused_before_the_text_is_read(make_recipe, tmp_path, changes, message):
    data = {"train": "no-such-file.txt"}
    with pytest.raises(ValueError, match=message):
        train_recipe(make_recipe(**{"data": data, **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_text_shorter_than_a_block_leaves_no_folder(make_recipe, tmp_path):
    (tmp_path / "short.txt").write_text("Too short.")
    data = {"train": str(tmp_path / "short.txt"), "vocab_size": 257, "train_length": 512}
    with pytest.raises(ValueError, match="fewer than one block of 512"):
        train_recipe(make_recipe(data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_of_somebody_else_are_left_alone(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "mine.pt").write_text("precious")
    recipe = Recipe.model_validate(
        {"scheme": "rope", "data": {"train": [str(tmp_path)]}, "training": {"steps": 1}}
    )
    with pytest.raises(ValueError, match=r"holds a checkpoints but no training\.json"):
        train_recipe(recipe, run)
    assert (run / "checkpoints" / "mine.pt").read_text() == "precious"


def test_rows_of_a_table_that_the_recipe_gives_count(make_recipe, tmp_path):
    model = {
        **make_recipe().model.model_dump(exclude_none=True),
        "intra": {"type": "learned", "max_offset": 77},
    }
    trained = train_recipe(make_recipe(model=model), tmp_path / "run", on_progress=ignore)
    assert trained.model.config.intra == {"type": "learned", "max_offset": 77}
    model["intra"]["max_offset"] = -2
    with pytest.raises(ValueError, match="max_offset, its number of rows"):
        train_recipe(make_recipe(model=model), tmp_path / "other", on_progress=ignore)


@pytest.mark.parametrize("workers", [0, 1])
def test_arithmetic_is_trained_on_with_its_own_tokens_and_segments(make_recipe, tmp_path, workers):
    """Batches made by another process are the same batches."""
    recipe = make_recipe(
        rule="equals",
        data={"arithmetic": {"operators": 2, "problems": 40, "validation_problems": 5}},
        training={"steps": 3, "batch_size": 4, "loader_workers": workers},
    )
    trained = train_recipe(recipe, tmp_path / "run", on_progress=ignore)
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    config = trained.model.config
    assert (config.vocab_size, config.max_position_embeddings, config.original_max_segments) == (21, 14, 3)
    assert config.segmenter["end_token_ids"] == [2, 9]
    assert AutoTokenizer.from_pretrained(tmp_path / "run").decode([20, 9]) == "10 ="

    blocks = ArithmeticBlocks(2, "train", 40)
    model = BipeForCausalLM(config)
    initialize_by_name(model, recipe.seed)
    order = list(SeededOrder(40, 12, recipe.seed))[:4]
    batch = {key: torch.stack([blocks[n][key] for n in order]) for key in blocks[0]}
    assert trained.history[0]["loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-4)
    validated = validation_loss(trained.model, ArithmeticBlocks(2, "validation", 5), 4)
    assert trained.history[-1]["validation_loss"] == pytest.approx(validated, rel=1e-4)
