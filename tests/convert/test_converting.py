from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from transformers import AutoModelForCausalLM, AutoTokenizer

from convert.checkpoints import adam_after_steps, model_of, save, torchtitan_state
from direct_anneal.convert import convert, pipeline
from direct_anneal.convert.dcp_metadata import read_entries
from direct_anneal.errors import InputError
from direct_anneal.gradients import adam_scales
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.train.pipeline import load_optimizer_state
from selection.tiny import byte_tokenizer

TOKENS = torch.arange(30)[None] % 48


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def config_of(model: torch.nn.Module, directory: Path) -> Path:
    model.config.save_pretrained(directory)
    return directory


def converted(tmp_path: Path, model: torch.nn.Module, state: dict) -> dict:
    return convert(
        save(tmp_path / "dcp", state), model_config=config_of(model, tmp_path / "config"), out=tmp_path / "out"
    )


@pytest.mark.parametrize("old", [True, False], ids=["before-0.3", "0.3"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_torchtitans_names_and_rows(tmp_path, family, old, tied):
    model = model_of(family, tie_word_embeddings=tied)
    record = converted(tmp_path, model, torchtitan_state(model, old=old))
    assert record["naming"] == "torchtitan's"
    assert not record["optimizer"]
    assert record["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    loaded = Checkpoint(str(tmp_path / "out")).load_model("cpu", "float32")
    # The very same numbers in the same order, so that not a bit of the logits may differ.
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("prefix", ["", "model", "module", "app"])
def test_hugging_faces_own_names(tmp_path, prefix):
    model = model_of("llama")
    weights = model.state_dict()
    state = {
        "": weights,
        "model": {"model": weights},
        "module": {"module": weights},
        "app": {"app": {"model": weights}},
    }
    assert converted(tmp_path, model, state[prefix])["naming"] == "Hugging Face's"
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


def test_bfloat16_stays(tmp_path):
    model = model_of("llama").to(torch.bfloat16)
    converted(tmp_path, model, torchtitan_state(model, old=False))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("naming", ["torchtitan", "nested"])
def test_adams_moments_come_along(tmp_path, naming):
    model = model_of("llama")
    optimizer = adam_after_steps(model)
    if naming == "torchtitan":
        state = torchtitan_state(model, optimizer, old=False)
    else:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
    assert converted(tmp_path, model, state)["optimizer"]
    names = {parameter: name for name, parameter in model.named_parameters()}
    wanted = {names[parameter]: entry for parameter, entry in optimizer.state.items()}
    saved = load_optimizer_state(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    # The two groups of transformers' Trainer, which anneal checks them by: matrices, and the rest.
    matrices = [name for name, p in loaded.named_parameters() if p.ndim == 2]
    vectors = [name for name, p in loaded.named_parameters() if p.ndim == 1]
    for names_of_group, group in zip((matrices, vectors), saved["param_groups"], strict=True):
        assert (tuple(group["betas"]), group["eps"], group["lr"]) == ((0.9, 0.95), 1e-7, 1e-3)
        for name, number in zip(names_of_group, group["params"], strict=True):
            for moment in ("exp_avg", "exp_avg_sq", "step"):
                assert torch.equal(saved["state"][number][moment], wanted[name][moment]), name
    scales = adam_scales(tmp_path / "out" / "optimizer.pt", loaded)
    for name, entry in wanted.items():
        root = (entry["exp_avg_sq"].double() / (1 - 0.95**3)).sqrt() + 1e-7
        # float32 has 24 bits, and three roundings to 2^-24 are below this.
        torch.testing.assert_close(scales[name].double(), root.rsqrt(), rtol=1e-6, atol=0)


def test_half_an_optimizer_is_an_error(tmp_path):
    model = model_of("llama")
    state = torchtitan_state(model, adam_after_steps(model), old=False)
    del state["optimizer"]["state.norm.weight.exp_avg"]
    with pytest.raises(InputError, match=r"lacks 1 entries of it .*norm\.weight\.exp_avg"):
        converted(tmp_path, model, state)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.tmp").exists()


def test_the_tokenizer_comes_along_and_large_models_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_SHARD_BYTES", 20_000)
    model = model_of("llama")
    byte_tokenizer().save_pretrained(config_of(model, tmp_path / "config"))
    save(tmp_path / "dcp", torchtitan_state(model, old=False))
    convert(tmp_path / "dcp", model_config=tmp_path / "config" / "config.json", out=tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]


def test_a_checkpoint_in_parts(tmp_path):
    """A checkpoint as several processes save it: each tensor in pieces, here by moving them apart by hand."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    model = model_of("llama")
    save(tmp_path / "dcp", model.state_dict())
    metadata = description(tmp_path / "dcp")
    for number, (name, weight) in enumerate(model.state_dict().items()):
        half = len(weight) // 2
        chunks = []
        for part, start in ((weight[:half], 0), (weight[half:], half)):
            file = tmp_path / "dcp" / f"__{number + 1}_{start}.distcp"
            torch.save(part.clone(), file)
            offsets = torch.Size([start, *[0] * (weight.ndim - 1)])
            chunks.append(ChunkStorageMetadata(offsets, part.shape))
            metadata.storage_data[MetadataIndex(name, offsets)] = _StorageInfo(file.name, 0, file.stat().st_size)
        metadata.state_dict_metadata[name].chunks = chunks
    write(tmp_path / "dcp", metadata)
    (tmp_path / "dcp" / "__0_0.distcp").unlink()
    convert(tmp_path / "dcp", model_config=config_of(model, tmp_path / "config"), out=tmp_path / "out")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


class TestAnotherModel:
    def test_another_architecture(self, tmp_path):
        save(tmp_path / "dcp", torchtitan_state(model_of("llama"), old=False))
        with pytest.raises(InputError, match="lacks 4 of 25 under torchtitan's names"):
            convert(
                tmp_path / "dcp", model_config=config_of(model_of("qwen3"), tmp_path / "config"), out=tmp_path / "out"
            )

    def test_another_size(self, tmp_path):
        save(tmp_path / "dcp", torchtitan_state(model_of("llama"), old=False))
        config = config_of(model_of("llama"), tmp_path / "config") / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 44}))
        with pytest.raises(InputError, match=r"feed_forward.* has shape \(40, 32\) where .* has \(44, 32\)"):
            convert(tmp_path / "dcp", model_config=config, out=tmp_path / "out")

    @pytest.mark.parametrize("naming", ["torchtitan", "hugging-face", "prefixed"])
    def test_fewer_layers(self, tmp_path, naming):
        """Every weight of the configuration is there, and the model would be another one."""
        model = model_of("llama")
        states = {
            "torchtitan": torchtitan_state(model, old=False),
            "hugging-face": model.state_dict(),
            "prefixed": {"model": model.state_dict(), "optimizer": {"step": torch.tensor(3)}},
        }
        save(tmp_path / "dcp", states[naming])
        config = config_of(model, tmp_path / "config") / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 1}))
        with pytest.raises(InputError, match=r"it has 9 more \(first [a-z.]*layers\.1\..*give its own config"):
            convert(tmp_path / "dcp", model_config=config, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_weight_that_nobody_knows(self, tmp_path):
        model = model_of("llama")
        with pytest.raises(InputError, match=r"it has 1 more \(first foo\.bar\)"):
            converted(tmp_path, model, {**torchtitan_state(model, old=False), "foo.bar": torch.ones(2)})

    @pytest.mark.parametrize("name", ["freqs_cis", "rotary_emb.inv_freq", "lr_scheduler.last", "rng_state.cpu"])
    def test_what_is_no_weight_may_be_there(self, tmp_path, name):
        model = model_of("llama")
        converted(tmp_path, model, {**torchtitan_state(model, old=False), name: torch.ones(2)})
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))

    @pytest.mark.parametrize("naming", ["torchtitan", "hugging-face"])
    def test_tied_weights_may_be_there_twice_and_must_be_the_same(self, tmp_path, naming):
        model = model_of("llama", tie_word_embeddings=True)
        state = torchtitan_state(model, old=False) if naming == "torchtitan" else dict(model.state_dict())
        head = model.get_output_embeddings().weight.detach()
        converted(tmp_path, model, {**state, "lm_head.weight": head.clone()})
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model))
        (tmp_path / "other").mkdir()
        with pytest.raises(InputError, match=r"tie lm_head\.weight .* with tie_word_embeddings false"):
            converted(tmp_path / "other", model, {**state, "lm_head.weight": head + 1})

    def test_no_language_model(self, tmp_path):
        save(tmp_path / "dcp", {"a": torch.ones(2)})
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "config.json").write_text('{"model_type": "t5"}')
        with pytest.raises(InputError, match="causal language model"):
            convert(tmp_path / "dcp", model_config=tmp_path / "config", out=tmp_path / "out")

    def test_a_config_that_is_nowhere_is_named_by_its_flag(self, tmp_path):
        with pytest.raises(InputError, match=r"^model_config must be a checkpoint directory"):
            convert(tmp_path / "dcp", model_config=tmp_path / "nowhere", out=tmp_path / "out")

    def test_moments_without_betas(self, tmp_path):
        model = model_of("llama")
        state = torchtitan_state(model, adam_after_steps(model), old=False)
        state["optimizer"] = {key: value for key, value in state["optimizer"].items() if not key.endswith(".betas")}
        with pytest.raises(InputError, match=r"betas and eps .* save its param_groups, too, or the model alone"):
            converted(tmp_path, model, state)

    def test_out_holds_something(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").touch()
        with pytest.raises(InputError, match="new or empty"):
            convert(tmp_path / "dcp", model_config=tmp_path, out=tmp_path / "out")

    def test_a_directory_that_is_in_the_way_stays(self, tmp_path):
        model = model_of("llama")
        (tmp_path / "out.tmp").mkdir()
        (tmp_path / "out.tmp" / "thesis.tex").touch()
        with pytest.raises(InputError, match="in the way"):
            converted(tmp_path, model, torchtitan_state(model, old=False))
        assert (tmp_path / "out.tmp").exists()


def description(directory: Path):
    return dcp.FileSystemReader(directory).read_metadata()


def write(directory: Path, metadata: object) -> None:
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))


class Ran:
    """Unpickled by whoever loads what is not to be loaded, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestHarm:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        return save(tmp_path / "dcp", {"a": torch.arange(6.0).reshape(2, 3), "b": {"lr": 0.5}})

    def fails(self, directory: Path, match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            read_entries(directory)
        assert "\n" not in str(caught.value)

    def test_what_is_well_is_read(self, saved):
        assert {name: entry.shape for name, entry in read_entries(saved).items()} == {"a": (2, 3), "b.lr": ()}

    def test_a_description_with_code_in_it_runs_none(self, saved, tmp_path):
        for metadata in (Ran(tmp_path / "ran"), {"state_dict_metadata": Ran(tmp_path / "ran")}):
            write(saved, metadata)
            self.fails(saved, r"names (posix|nt)\.mkdir, which is never loaded")
        whole = description(save(saved.parent / "other", {"a": torch.ones(1)}))
        whole.planner_data = Ran(tmp_path / "ran")
        write(saved, whole)
        self.fails(saved, "never loaded")
        pickle.loads((saved / ".metadata").read_bytes())  # noqa: S301 (to show that the test can fail)
        assert (tmp_path / "ran").exists()

    @pytest.mark.parametrize("name", ["torch.load", "torch.hub.load", "builtins.eval", "torch.distributed.checkpoint"])
    def test_no_other_name_of_torch(self, saved, name):
        module, _, attribute = name.rpartition(".")
        (saved / ".metadata").write_bytes(f"c{module}\n{attribute}\n.".encode())
        self.fails(saved, "never loaded")

    def test_values_with_code_in_them_run_none(self, saved, tmp_path):
        model = model_of("llama")
        state = torchtitan_state(model, adam_after_steps(model), old=False)
        for key in [key for key in state["optimizer"] if key.endswith(".betas")]:
            state["optimizer"][key] = Ran(tmp_path / "ran")
        with pytest.raises(InputError, match="tensors and numbers alone"):
            converted(tmp_path / "new", model, state)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        "content", [b"", b"\x80\x04", b"\x80\x04N.", b"\x8e" + b"\xff" * 8, b"not a pickle", b"r\xff\xff\xff\xff."]
    )
    def test_bytes_that_mean_nothing(self, saved, content):
        (saved / ".metadata").write_bytes(content)
        self.fails(saved, "cannot be read|never loaded")

    def test_no_description(self, tmp_path):
        self.fails(tmp_path, "no readable .metadata")

    @pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "..", "", "a/b", 3])
    def test_files_outside(self, saved, path):
        (saved.parent / "secret").write_bytes(b"x" * 10_000)
        metadata = description(saved)
        for info in metadata.storage_data.values():
            info.relative_path = path
        write(saved, metadata)
        self.fails(saved, "must name files beside it")

    def test_a_link_out(self, saved):
        file = saved / "__0_0.distcp"
        file.rename(saved.parent / "elsewhere")
        file.symlink_to(saved.parent / "elsewhere")
        self.fails(saved, "missing or a link")

    def test_a_file_that_is_gone_or_cut(self, saved):
        file = saved / "__0_0.distcp"
        file.write_bytes(file.read_bytes()[:-1])
        self.fails(saved, "copy it again")
        file.unlink()
        self.fails(saved, "missing or a link")

    @pytest.mark.parametrize("size", [(2**40, 2**20), (3, 3), (2, -3), (2,)])
    def test_a_tensor_larger_than_its_bytes(self, saved, size):
        metadata = description(saved)
        entry = metadata.state_dict_metadata["a"]
        entry.size = entry.chunks[0].sizes = size if min(size) < 0 else torch.Size(size)
        if len(size) == 2 and size != (3, 3):
            write(saved, metadata)
            self.fails(saved, "no room|cannot be read")
        entry.chunks[0].sizes = torch.Size((2, 3))
        write(saved, metadata)
        self.fails(saved, "make none|cannot be read")

    def test_bytes_that_are_used_twice(self, saved):
        metadata = description(saved)
        for number in range(100):
            index = MetadataIndex(f"c{number}")
            metadata.state_dict_metadata[index.fqn] = BytesStorageMetadata()
            metadata.storage_data[index] = next(iter(metadata.storage_data.values()))
        write(saved, metadata)
        self.fails(saved, "several")

    def test_a_packed_archive(self, tmp_path):
        model = model_of("llama")
        saved = save(tmp_path / "dcp", model.state_dict())
        metadata = description(saved)
        info = next(info for index, info in metadata.storage_data.items() if index.fqn == "model.embed_tokens.weight")
        bomb = saved / "__9_9.distcp"
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * 10**7)
        bomb.write_bytes(bomb.read_bytes() + b"\0" * 10_000)
        info.relative_path, info.offset, info.length = bomb.name, 0, bomb.stat().st_size
        write(saved, metadata)
        with pytest.raises(InputError, match="it is packed"):
            convert(saved, model_config=config_of(model, tmp_path / "config"), out=tmp_path / "out")

    def test_another_tensor_than_described(self, tmp_path):
        model = model_of("llama")
        saved = save(tmp_path / "dcp", model.state_dict())
        metadata = description(saved)
        infos = {index.fqn: info for index, info in metadata.storage_data.items()}
        a, b = infos["model.norm.weight"], infos["model.layers.0.mlp.up_proj.weight"]
        a.offset, b.offset, a.length, b.length = b.offset, a.offset, b.length, a.length
        metadata.state_dict_metadata["model.norm.weight"].size = torch.Size([32])
        write(saved, metadata)
        with pytest.raises(InputError, match=r"no room|does not"):
            convert(saved, model_config=config_of(model, tmp_path / "config"), out=tmp_path / "out")
