"""Hugging Face transformers, from config: keyword inputs, dict outputs, caches, masks, tied embeddings."""

import netcarve
import numpy as np
import pytest
import torch
from netcarve import trace
from netcarve.model.proof import relative_difference
from netcarve.spaces.testing import zeroed_consumers

hf = pytest.importorskip("transformers")

LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"vocab_size": 64, "max_position_embeddings": 40}
GPT2 = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
LLAMA = {**LAYERS, **TEXT, "num_key_value_heads": 2}
IMAGE = {**LAYERS, "image_size": 32, "patch_size": 8, "num_labels": 5}
SPEECH = {
    "conv_dim": [16] * 3,
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 3],
    "num_feat_extract_layers": 3,
}
WHISPER = {"vocab_size": 64, "num_mel_bins": 16, "d_model": 32, "encoder_layers": 2, "encoder_ffn_dim": 64}


def ids(n):
    return {"input_ids": torch.randint(3, 60, (n, 8))}


def masked(n):
    mask = torch.ones(n, 8, dtype=torch.long)
    mask[-1, -3:] = 0
    return {**ids(n), "attention_mask": mask, "token_type_ids": torch.randint(0, 2, (n, 8))}


def pixels(n):
    return {"pixel_values": torch.randn(n, 3, 32, 32)}


def resnet():
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
    return hf.ResNetForImageClassification(hf.ResNetConfig(**sizes, layer_type="basic", num_labels=5))


def swin():
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
    return hf.SwinForImageClassification(hf.SwinConfig(**sizes, window_size=4))


def t5():
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return hf.T5EncoderModel(hf.T5Config(**sizes))


def whisper():
    config = hf.WhisperConfig(**WHISPER, encoder_attention_heads=4, max_source_positions=20, pad_token_id=0)
    return hf.models.whisper.modeling_whisper.WhisperEncoder(config)


# name -> (model, inputs for n samples); those that end in hidden states must keep the embedding width
MODELS = {
    "resnet": (resnet, pixels),
    "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**IMAGE)), pixels),
    "bert": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**LAYERS, **TEXT, num_labels=5)), masked),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)), ids),
    "gpt2 without a cache": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, use_cache=False)), ids),
    "distilbert": (
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
        ),
        ids,
    ),
    "roberta": (lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**LAYERS, **TEXT)), ids),
    "t5 encoder": (t5, ids),
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA)), ids),
    "qwen2": (lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA)), ids),
    "convnext": (
        lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1])
        ),
        pixels,
    ),
    "swin": (swin, pixels),
    "deit": (lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**IMAGE)), pixels),
    "wav2vec2": (
        lambda: hf.Wav2Vec2Model(
            hf.Wav2Vec2Config(**LAYERS, **SPEECH, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
        ),
        lambda n: {"input_values": torch.randn(n, 1600)},
    ),
    "whisper encoder": (whisper, lambda n: {"input_features": torch.randn(n, 16, 40)}),
    "clip vision": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**IMAGE, projection_dim=32)), pixels),
}
# Sizes of the groups of heads, 4 where not stated; with grouped queries, the heads of the keys.
HEADS = {"resnet": set(), "convnext": set(), "llama": {2}, "qwen2": {2}, "swin": {2, 4}}


def made(name):
    """In eval mode, with numbers in every parameter: zero biases and layer scales hide wrong cuts."""
    torch.manual_seed(0)
    net = MODELS[name][0]()
    with torch.no_grad():
        for p in net.parameters():
            if bool((p == p.flatten()[0]).all()):
                p.add_(torch.rand_like(p) * 0.3)
    return net.eval()


def tensors(output):
    return [t for t in output.values() if isinstance(t, torch.Tensor)]


@pytest.mark.quick("vit")
@pytest.mark.parametrize("name", MODELS)
def test_heads_hidden_width_and_embeddings_go(name):
    net, inputs = made(name), MODELS[name][1]
    blueprint = trace(net, inputs(2))
    space = blueprint.space(ratios=[0, 0.5])
    assert not blueprint.prove().left_out
    parameters = dict(net.named_parameters())
    total = sum(p.numel() for p in parameters.values())
    reached = {m.parameter for g in blueprint.groups for m in g.members} & set(parameters)
    assert sum(parameters[p].numel() for p in reached) > 0.5 * total

    attention = {g.size for g in blueprint.groups if g.size <= 4}
    assert attention == HEADS.get(name, {4})

    half = space.candidate([1] * len(space))
    small = space.build(half)
    assert sum(p.numel() for p in small.parameters()) == space.costs([half]).params[0] < 0.75 * total
    x = inputs(3)
    with torch.no_grad():
        got, full = small(**x), net(**x)
    assert [t.shape for t in tensors(got)] == [t.shape for t in tensors(full)]

    # Heads and hidden units alone: no norm runs over them, so that zero weights in their readers are removal.
    inner = {g.name for g in blueprint.groups if g.size in (*attention, 64)}
    part = space.candidate([int(choice.about.group in inner) for choice in space.choices])
    if not inner:
        return
    with torch.no_grad():
        got = tensors(space.build(part)(**x))
        expected = tensors(zeroed_consumers(net, blueprint, part)(**x))
    assert relative_difference(got, expected)[0] < 1e-5
    assert relative_difference(got, tensors(full))[0] > 1e-4  # else the comparison shows nothing


def classes(name, n=24):
    """A task of dict batches; the labels are what the model says, so that it is right about them."""
    net, inputs = made(name), MODELS[name][1]
    batches = [inputs(8) for _ in range(n // 8)]
    with torch.no_grad():
        labels = [net(**x)["logits"].argmax(-1) for x in batches]
    return netcarve.Task(net, batches[0], list(zip(batches, labels, strict=True)), name=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_task_of_dict_batches_is_searched_and_exported(name, tmp_path):
    task = classes(name)
    space = trace(task.model, task.example).space(ratios=[0, 0.25, 0.5], calibration=task.calibration_batches)
    run = netcarve.sweep(
        task, space, "random", ["accuracy", "macs"], trials=4, workers=0, seed=0, out=tmp_path / "run"
    )
    assert run.trials[0].scores["accuracy"] == 1.0
    assert all(trial.error is None for trial in run.trials)
    smallest = run.front.best("macs")
    assert sum(p.numel() for p in run.model(smallest.number).parameters()) < sum(
        p.numel() for p in task.model.parameters()
    )
    run.export(smallest.number, tmp_path / "small", formats=("pt2",))
    program = torch.export.load(tmp_path / "small" / "model.pt2")
    x = task.batches[0][1]
    with torch.no_grad():
        got, expected = (net(**x)["logits"] for net in (program.module(), run.model(smallest.number).eval()))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
