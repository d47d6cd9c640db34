"""Networks of transformers by name, and students as folders that transformers loads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import transprune
from hugging_face_folders import (
    GatedRepoError,
    RepositoryNotFoundError,
    changed,
    write_image_classifier,
    write_language_model,
)
from transprune.data.texts import IGNORED
from transprune.errors import ExportError, ModelError
from transprune.models import hugging_face
from transprune.models.by_name import build_model, pretrained
from transprune.models.hugging_face import Origin

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: Any) -> Path:
    return write_language_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: Any) -> Path:
    return write_image_classifier(tmp_path_factory.mktemp("vit"))


def test_a_folder_names_a_network_and_its_weights(llama: Path) -> None:
    name = f"hf:{llama}"
    network = build_model(name, classes=None, image_channels=None)
    assert type(network) is transformers.LlamaForCausalLM
    network.load_state_dict(pretrained(name, image_channels=3))
    stock = transformers.LlamaForCausalLM.from_pretrained(llama).eval()
    tokens = torch.arange(12).view(1, 12)
    with torch.no_grad():
        assert torch.equal(network.eval()(tokens).logits, stock(tokens).logits)


def test_a_classifier_gets_as_many_classes_as_the_data(vit: Path) -> None:
    network = build_model(f"hf:{vit}", classes=7, image_channels=1)
    assert network(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 7)
    assert Origin(f"hf:{vit}").image_statistics() == {"mean": [0.25], "std": [0.5]}
    with pytest.raises(ModelError, match=r"images with 3 channels: it reads 1; .*--image-size 1 ROWS COLUMNS"):
        build_model(f"hf:{vit}", classes=7, image_channels=3)


def test_folders_that_hold_no_network_are_refused(llama: Path) -> None:
    pickled = changed(llama, without="model.safetensors", pytorch_model__bin="x")
    with pytest.raises(ModelError, match=r"they are pickled \(pytorch_model.bin\), which may run code; .*save_pretra"):
        pretrained(pickled, image_channels=3)
    with pytest.raises(ModelError, match=r"there are none in the folder; expected model.safetensors"):
        pretrained(changed(llama, without="model.safetensors"), image_channels=3)
    with pytest.raises(ModelError, match="cannot read the weights of"):
        pretrained(changed(llama, model__safetensors="damaged"), image_channels=3)
    with pytest.raises(ModelError, match=r"names no class; expected under 'architectures' a class of transformers"):
        build_model(changed(llama, config={"architectures": None}), classes=None, image_channels=None)
    with pytest.raises(ModelError, match=r"names Own, which transformers does not have"):
        build_model(changed(llama, config={"architectures": ["Own"]}), classes=None, image_channels=None)
    with pytest.raises(ModelError, match=r"the tokenizer of .*: it has 280 tokens, and the network knows 100"):
        Origin(f"hf:{llama}").tokenizer(100)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (GatedRepoError("401"), r"accept its terms.*accept them.*hf auth login"),
        (RepositoryNotFoundError("404"), r"no such repository on the Hub; expected hf:FOLDER or hf:OWNER/NAME"),
        (OSError("own/name does not appear to have a file named model.safetensors"), r"pickled weights.*are not read"),
        (OSError("We couldn't connect"), r"the Hub does not give it \(OSError: We couldn't.*hf download own/name"),
    ],
)
def test_what_the_hub_does_not_give_is_a_sentence(error: OSError, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(str(error)) from error

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelError, match=said):
        Origin("hf:own/name").config()


def test_a_written_folder_is_read_by_the_stock_class(llama: Path, tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(llama).eval()
    tokens = {"input_ids": torch.randint(2, 280, (2, 12), generator=torch.Generator().manual_seed(0))}
    space = transprune.inspect(model, tokens, tie="config")
    architecture = space.random_architecture(3)
    student = transprune.shrink(model, architecture, tokens, reading=space.reading)
    stock = transprune.configured(student, model, space, architecture)
    stock.train().model.norm.eval()
    modes = [module.training for module in stock.modules()]
    folder = transprune.export_pretrained(stock, tmp_path / "small", tokens, origin=f"hf:{llama}", card="# Small")
    assert [module.training for module in stock.modules()] == modes
    assert (folder / "README.md").read_text() == "# Small"
    again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**tokens).logits, student.eval()(**tokens).logits, rtol=0, atol=1e-5)
    written = transformers.pipeline("text-generation", folder)("The cat", max_new_tokens=4, do_sample=False)
    assert written[0]["generated_text"].startswith("The cat")


def test_what_is_no_stock_network_is_not_written(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"write Linear as a folder of transformers: expected .*--tie config"):
        transprune.export_pretrained(nn.Linear(2, 2), tmp_path, torch.zeros(1, 2))
    stock, tokens = transformers.LlamaForCausalLM.from_pretrained(llama), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ExportError, match="that is where the unpruned network is"):
        transprune.export_pretrained(stock, llama, tokens, origin=f"hf:{llama}")
    monkeypatch.setattr(hugging_face, "CLOSE", -1.0)
    with pytest.raises(ExportError, match="its class keeps something that its configuration does not say"):
        transprune.export_pretrained(stock, tmp_path / "off", tokens)


def test_uploads_go_to_the_named_repository(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[Any] = []

    class Hub:
        def create_repo(self, name: str, *, exist_ok: bool) -> None:
            calls.append((name, exist_ok))

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
            calls.append((repo_id, sorted(file.name for file in folder_path.iterdir())))
            raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    stock, tokens = transformers.LlamaForCausalLM.from_pretrained(llama), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ExportError, match=r"upload .* as 'me/small': OSError: no network; the folder is whole; log in"):
        transprune.export_pretrained(stock, tmp_path / "up", tokens, push_to_hub="me/small")
    assert calls[0] == ("me/small", True)
    assert "model.safetensors" in calls[1][1]


def test_the_figures_of_tokens_are_those_of_their_definition() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[0, 3:] = IGNORED
    task = transprune.causal_lm()
    lost = [
        -float(logits[text, at].log_softmax(0)[labels[text, at + 1]])
        for text in range(3)
        for at in range(4)
        if labels[text, at + 1] != IGNORED
    ]
    wanted = sum(lost) / len(lost)
    assert float(task.loss({"logits": logits}, labels)) == pytest.approx(wanted, rel=1e-6)
    means = task.metric("token_loss").measure(logits, labels).double().mean(0)
    assert float(task.metric("token_loss").finish(means)) == pytest.approx(wanted, rel=1e-6)
    assert float(task.metric("perplexity").finish(means)) == pytest.approx(torch.tensor(wanted).exp().item(), rel=1e-6)
    assert task.logits_of(logits, labels).shape == (len(lost), 7)
    tagging = transprune.token_classification()
    is_right = (logits.argmax(2) == labels) & (labels != IGNORED)
    share = 100 * int(is_right.sum()) / int((labels != IGNORED).sum())
    means = tagging.metric("token_accuracy").measure(logits, labels).double().mean(0)
    assert float(tagging.metric("token_accuracy").finish(means)) == pytest.approx(share)


def test_a_student_does_not_learn_from_padding() -> None:
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(2, 6, 5), torch.randn(2, 6, 5), torch.randint(0, 5, (2, 6))
    labels[1, 4:] = IGNORED
    task = transprune.token_classification()
    given = {"weight": 0.5, "temperature": 2.0}
    before = task.distillation_loss_of(student, teacher, labels, **given)
    changed = teacher.clone()
    changed[1, 4:] += 3
    assert torch.equal(task.distillation_loss_of(student, changed, labels, **given), before)
    changed[1, 3] += torch.randn(5)
    assert not torch.equal(task.distillation_loss_of(student, changed, labels, **given), before)


def grouped(kind: str, queries: int, keys: int, **more: Any) -> nn.Module:
    configuration = getattr(transformers, f"{kind}Config")(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=queries,
        num_key_value_heads=keys,
        vocab_size=31,
        use_cache=False,
        **more,
    )
    return getattr(transformers, f"{kind}ForCausalLM")(configuration)


def attention(queries: int, keys: int) -> nn.Module:
    return grouped("Llama", queries, keys)


def phi(queries: int, keys: int) -> nn.Module:
    return grouped("Phi3", queries, keys, pad_token_id=0)


def falcon(queries: int, keys: int) -> nn.Module:
    return transformers.FalconForCausalLM(
        transformers.FalconConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=queries,
            num_kv_heads=keys,
            new_decoder_architecture=keys > 1,
            vocab_size=31,
            use_cache=False,
        )
    )


@pytest.mark.parametrize("build", [attention, falcon, phi])
@pytest.mark.parametrize(("queries", "keys"), [(8, 2), (4, 1), (8, 4)])
def test_queries_that_share_keys_are_cut_in_the_stock_class(build: Any, queries: int, keys: int) -> None:
    torch.manual_seed(0)
    network = build(queries, keys).eval()
    example = {"input_ids": torch.ones(2, 5, dtype=torch.long)}
    space = transprune.inspect(network, example)
    [group] = [each for each in space.groups if each.width == max(keys, queries // keys) and "down" not in each.name]
    architecture = transprune.Architecture(widths={group.name: group.width // 2})
    student = transprune.shrink(network, architecture, example, reading=space.reading)
    assert type(student) is type(network)
    assert transprune.count_macs(student, example) == space.macs(architecture)
    ids = torch.arange(12).view(2, 6) % 31
    mask = torch.ones_like(ids).index_fill_(1, torch.tensor([0]), 0)  # with a mask a forward may repeat the keys
    assert student(input_ids=ids, attention_mask=mask).logits.isfinite().all()
    assert student.generate(ids, max_new_tokens=3, use_cache=True, pad_token_id=0).shape == (2, 9)


def with_positions() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=31, n_positions=32, n_embd=16, n_layer=1, n_head=4, use_cache=False)
    )


def with_linear_biases() -> nn.Module:
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=31, hidden_size=16, n_layer=1, n_head=4, use_cache=False)
    )


def with_scaled_embeddings() -> nn.Module:
    return sliding(num_hidden_layers=1, use_cache=False)


def with_relative_positions() -> nn.Module:
    return transformers.T5ForTokenClassification(
        transformers.T5Config(vocab_size=31, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    )


@pytest.mark.parametrize(
    ("build", "hidden", "heads"),
    [
        (with_positions, {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"}, set()),
        (with_linear_biases, {"transformer.word_embeddings.weight", "lm_head.weight"}, set()),
        (with_scaled_embeddings, {"model.embed_tokens.weight", "lm_head.weight"}, set()),
        (
            with_relative_positions,
            {"transformer.shared.weight", "transformer.encoder.embed_tokens.weight"},
            {"transformer.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"},
        ),
    ],
)
def test_tables_are_cut_with_the_hidden_size_and_stay_tied(build: Any, hidden: set[str], heads: set[str]) -> None:
    """Tokens, positions and the head with the hidden size; a table with an entry for each head with the heads."""
    torch.manual_seed(0)
    network = build().eval()
    example = {"input_ids": torch.ones(2, 5, dtype=torch.long)}
    space = transprune.inspect(network, example, dimensions="width")
    whole, cut_tables = dict(network.named_parameters(remove_duplicate=False)), []
    tables = [name for name in whole if isinstance(network.get_submodule(name.rpartition(".")[0]), nn.Embedding)]
    for group in space.groups:
        architecture = transprune.Architecture(widths={group.name: group.candidates[0]})
        student = transprune.shrink(network, architecture, example, reading=space.reading)
        cut = dict(student.named_parameters(remove_duplicate=False))
        assert type(student) is type(network)
        assert transprune.count_macs(student, example) == space.macs(architecture)
        assert sum(each.numel() for each in student.parameters()) == space.params(architecture)
        assert [cut[a] is cut[b] for a in cut for b in cut] == [whole[a] is whole[b] for a in cut for b in cut]
        assert student(torch.ones(3, 9, dtype=torch.long))[0].isfinite().all()
        changed = {name for name in {*tables, *hidden} if cut[name].shape != whole[name].shape}
        cut_tables.append(changed)
    assert sorted(filter(None, cut_tables), key=len) == sorted(filter(None, (hidden, heads)), key=len)


@pytest.mark.parametrize("task", ["SemanticSegmentation", "ImageClassification"])
def test_segformer_keeps_its_class_with_any_widths(task: str) -> None:
    torch.manual_seed(0)
    network = getattr(transformers, f"SegformerFor{task}")(
        transformers.SegformerConfig(
            hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8
        )
    ).eval()
    example = {"pixel_values": torch.randn(2, 3, 32, 32)}
    space = transprune.inspect(network, example)
    architecture = space.smallest_architecture()
    student = transprune.shrink(network, architecture, example, reading=space.reading)
    assert type(student) is type(network)
    assert transprune.count_macs(student, example) == space.macs(architecture)
    assert student(pixel_values=torch.randn(3, 3, 64, 32)).logits.isfinite().all()
    assert network.config.hidden_sizes == [8, 8, 8, 8]


def sliding(**kinds: Any) -> nn.Module:
    return transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **{"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2},
            **{"head_dim": 4, "vocab_size": 31, "sliding_window": 4, "pad_token_id": 0, **kinds},
        )
    )


def learned_positions() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=31, n_positions=32, n_embd=16, n_layer=4, n_head=4, pad_token_id=0)
    )


def number_of_tokens_so_far() -> nn.Module:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            **{"vocab_size": 31, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "num_hidden_layers": 4},
            **{"num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0},
        )
    )


TWO_KINDS = ["sliding_attention", "full_attention"] * 2


class Downsample2D(nn.Module):
    """As that of diffusers, which asserts how many channels it reads."""

    __module__ = "diffusers.models.downsampling"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = self.out_channels = channels
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape[1] == self.channels
        return self.conv(image)


def test_channels_that_a_module_of_diffusers_asserts_follow_the_cut() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), Downsample2D(8), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.LazyLinear(2))
    images = torch.randn(2, 3, 12, 12)
    network(images)
    space = transprune.inspect(network, images)
    student = transprune.shrink(network, space.smallest_architecture(), images, reading=space.reading)
    assert type(student) is nn.Sequential
    assert transprune.count_macs(student, images) == space.macs(space.smallest_architecture())


def two_kinds() -> nn.Module:
    return sliding(num_hidden_layers=4, layer_types=TWO_KINDS)


def convolutions_between() -> nn.Module:
    return transformers.Lfm2ForCausalLM(
        transformers.Lfm2Config(
            **{"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "pad_token_id": 0},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
        )
    )


QUICK = [
    (learned_positions, {0}),
    (number_of_tokens_so_far, {0, 1, 2, 3}),
    (two_kinds, {0}),
    (convolutions_between, {0}),
]
LATER = [(build, gone) for build in (learned_positions, two_kinds) for gone in ({0, 1}, {0, 2}, {1, 2}, {0, 1, 2, 3})]


@pytest.mark.parametrize(("build", "gone"), [*QUICK, *(pytest.param(*each, marks=pytest.mark.long) for each in LATER)])
def test_a_student_without_its_first_attention_or_any_caches_as_without_a_cache(build: Any, gone: set[int]) -> None:
    torch.manual_seed(0)
    network = build().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    ids = torch.arange(14).view(2, 7) % 29 + 1
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    [stage] = transprune.inspect(network, example, removable="branches").stages
    kept = tuple(each for place, each in enumerate(stage.blocks) if place not in {2 * block for block in gone})
    student = transprune.shrink(network, transprune.Architecture(blocks={stage.name: kept}), example)
    assert type(student) is type(network)
    longer = [
        student.eval().generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False, use_cache=use)
        for use in (True, False)
    ]
    assert torch.equal(*longer)
    begun = student(ids[:, :4], use_cache=True)  # positions of what follows are counted from what the cache holds
    rest = student(ids[:, 4:], past_key_values=begun.past_key_values)
    torch.testing.assert_close(rest.logits, student(ids).logits[:, 4:], rtol=1e-4, atol=1e-4)
