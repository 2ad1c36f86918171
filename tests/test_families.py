"""Published families of timm and torchvision, shallow and narrow: most of each may go, the rest is exact."""

import copy
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from netcarve import trace
from netcarve.model.proof import relative_difference
from netcarve.spaces.testing import zeroed_consumers
from torch import nn

if not (find_spec("timm") and find_spec("torchvision")):
    pytest.skip("timm and torchvision are not installed", allow_module_level=True)


class Later:
    """A module that is imported when it is first used: each test process collects this file, few run it."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, name):
        if name.startswith("_"):  # pytest looks at all that a file holds
            raise AttributeError(name)
        return getattr(import_module(self._name), name)


timm, tm, tv = Later("timm"), Later("timm.models"), Later("torchvision.models")

ONE = [1, 1, 1, 1]
NARROW = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)}
WINDOWS = {"depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
INVERTED = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]  # expansion, channels, blocks, stride


def fcn():
    body = tv._utils.IntermediateLayerGetter(tv.ResNet(tv.resnet.BasicBlock, ONE), {"layer4": "out"})
    return tv.segmentation.fcn.FCN(body, tv.segmentation.fcn.FCNHead(512, 5))


def hr():
    config = copy.deepcopy(tm.hrnet.cfg_cls["hrnet_w18_small"])
    for stage in (config["stage1"], config["stage2"], config["stage3"], config["stage4"]):
        stage["num_blocks"] = [1] * len(stage["num_blocks"])
        stage["num_channels"] = [max(8, c // 4) for c in stage["num_channels"]]
        stage["num_modules"] = 1
    return tm.hrnet.HighResolutionNet(config)


def repvgg():
    blocks = tuple(tm.byobnet.ByoBlockCfg(type="rep", d=2, c=c, s=2, gs=0) for c in (16, 24, 32))
    return tm.byobnet.ByobNet(tm.byobnet.ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=16))


def narrow(net, features):
    """A classifier of 64 units in place of the hundred million weights that the images do not need."""
    net.classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(features, 64), nn.ReLU(inplace=True), nn.Linear(64, 9)
    )
    return net


def vgg():
    return narrow(tv.VGG(tv.vgg.make_layers([16, "M", 32, "M", 64, "M"], batch_norm=True)), 64 * 49)


def discriminator():
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(16, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(32, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(64, 1, 4, 1, 0, bias=False), nn.Sigmoid(), nn.Flatten(0),
    )  # fmt: skip


def generator():
    """As in HiFi-GAN: every convolution under weight norm, the old way."""
    norm = nn.utils.weight_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 16, 3, padding=1)), nn.LeakyReLU(0.1),
        norm(nn.ConvTranspose2d(16, 16, 4, 2, 1)), nn.LeakyReLU(0.1),
        norm(nn.ConvTranspose2d(16, 8, 4, 2, 1)), nn.LeakyReLU(0.1),
        norm(nn.Conv2d(8, 1, 3, padding=1)), nn.Tanh(),
    )  # fmt: skip


def critic():
    """As in SNGAN: spectral norm throughout."""
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 16, 3, padding=1)), nn.LeakyReLU(0.1),
        norm(nn.Conv2d(16, 32, 4, 2, 1)), nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm(nn.Linear(32, 1)),
    )  # fmt: skip


def called_levit():
    """It keeps the attention biases that a call in eval mode computes."""
    net = tm.levit.Levit(64, embed_dim=(32, 48), key_dim=8, depth=(1, 1), num_heads=(4, 6), num_classes=7)
    net.eval()(torch.randn(2, 3, 64, 64))
    return net


def vit(cls):
    return cls(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5)


# name -> (network, pixels)
FAMILIES = {
    "resnet": (lambda: tv.ResNet(tv.resnet.BasicBlock, ONE), 32),
    "resnext": (lambda: tv.ResNet(tv.resnet.Bottleneck, ONE, groups=8, width_per_group=8), 32),
    "seresnet": (lambda: tm.resnet.ResNet(tm.resnet.BasicBlock, ONE, block_args={"attn_layer": "se"}), 32),
    "densenet": (lambda: tv.DenseNet(growth_rate=8, block_config=(2, 2, 2), num_init_features=16), 32),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(inverted_residual_setting=INVERTED), 32),
    "mobilenet_v3": (lambda: timm.create_model("mobilenetv3_small_050"), 32),
    "efficientnet": (lambda: timm.create_model("test_efficientnet"), 32),
    "regnet": (lambda: tv.RegNet(tv.regnet.BlockParams.from_init_params(6, 24, 36.0, 2.5, 8)), 32),
    "shufflenet_v2": (lambda: tv.ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 256]), 32),
    "squeezenet": (lambda: tv.squeezenet1_1(), 32),
    "googlenet": (lambda: tv.googlenet(init_weights=False, aux_logits=False), 64),
    "inception_v3": (lambda: tv.inception_v3(init_weights=False, aux_logits=False), 75),
    "mnasnet": (lambda: tv.mnasnet0_5(), 32),
    "vgg": (vgg, 32),
    "alexnet": (lambda: narrow(tv.alexnet(), 256 * 36), 64),
    "convnext": (lambda: tm.convnext.ConvNeXt(**NARROW), 64),
    "vit": (lambda: vit(tm.vision_transformer.VisionTransformer), 32),
    "deit": (lambda: vit(tm.deit.VisionTransformerDistilled), 32),
    "swin": (lambda: tm.swin_transformer.SwinTransformer(32, 2, embed_dim=16, **WINDOWS), 32),
    "mixer": (lambda: tm.mlp_mixer.MlpMixer(9, img_size=32, patch_size=8, num_blocks=2, embed_dim=32), 32),
    "poolformer": (lambda: tm.metaformer.MetaFormer(**NARROW), 64),
    "ghostnet": (lambda: timm.create_model("ghostnet_050"), 32),
    "hrnet": (hr, 64),
    "dla": (lambda: tm.dla.DLA([1, 1, 1, 2, 1, 1], [8, 8, 16, 16, 24, 32], block=tm.dla.DlaBasic), 64),
    "repvgg": (repvgg, 32),
    "cspnet": (lambda: timm.create_model("cs3darknet_focus_s"), 64),
    "nfnet": (lambda: timm.create_model("test_nfnet"), 64),
    "fcn": (fcn, 32),
    "discriminator": (discriminator, 32),
    "generator": (generator, 8),
    "critic": (critic, 16),
    "levit": (called_levit, 64),
}  # fmt: skip


def randomised(net):
    """No parameter or statistic whose entries are all equal: it could hide a wrong cut."""
    with torch.no_grad():
        for name, t in [*net.named_parameters(), *net.named_buffers()]:
            if t.is_floating_point() and t.dim() and bool((t == t.flatten()[0]).all()):
                t.add_(torch.rand_like(t) * (0.5 if "running" in name or t.any() else 0.2))
    return net.eval()


def zeroing_suffices(blueprint, group):
    """Removal is what zero weights in the layers that read the group do: no other operator sums over it."""
    coupling, graph = blueprint.coupling, blueprint.captured.graph_module.graph
    for node in graph.nodes:
        layer = any(kind in str(node.target) for kind in ("linear", "conv", "lstm", "gru"))
        if node.name not in coupling.statistics and (layer or node.name not in coupling.reads):
            continue
        for operand in node.all_input_nodes:
            parameter = coupling.canonical.get(str(operand.target), "")
            axes = [v for _, v in coupling.tensors.get(operand.name, ())] + list(
                coupling.parameters.get(parameter, ())
            )
            if any(v is not None and np.isin(v, group.labels).any() for v in axes):
                return False
    return True


SLOW = ("inception_v3", "ghostnet", "hrnet", "googlenet", "mnasnet", "nfnet")  # four seconds or more
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in FAMILIES]


@pytest.mark.quick("mobilenet_v2", "convnext", "shufflenet_v2")
@pytest.mark.parametrize("name", NAMES)
def test_most_of_a_family_goes_and_the_rest_is_exact(name):
    torch.manual_seed(0)
    make, pixels = FAMILIES[name]
    net = randomised(make())
    x = torch.randn(2, 3, pixels, pixels)
    blueprint = trace(net, x)
    space = blueprint.space(ratios=[0, 0.5])
    assert not blueprint.prove().left_out

    parameters = dict(blueprint.captured.source.named_parameters())  # computed weights folded
    total = sum(p.numel() for p in parameters.values())
    reached = {m.parameter for g in blueprint.groups for m in g.members} & set(parameters)
    assert sum(parameters[p].numel() for p in reached) > 0.5 * total

    half = space.candidate([1] * len(space))
    small = space.build(half)
    assert sum(p.numel() for p in small.parameters()) == space.costs([half]).params[0] < 0.6 * total
    with torch.no_grad():
        y, full = (outputs(net_(torch.randn(3, 3, pixels, pixels))) for net_ in (small, net))
    assert [t.shape for t in y] == [t.shape for t in full]

    # An oracle that shares nothing with the proof, for the groups over which nothing is normalised.
    plain = {g.name for g in blueprint.groups if zeroing_suffices(blueprint, g)}
    assert plain
    part = space.candidate([int(choice.about.group in plain) for choice in space.choices])
    with torch.no_grad():
        got, expected, whole = (
            outputs(net_(x)) for net_ in (space.build(part), zeroed_consumers(net, blueprint, part), net)
        )
    assert relative_difference(got, expected)[0] < 1e-5
    assert relative_difference(got, whole)[0] > 1e-3  # else the comparison shows nothing


def outputs(result):
    return list(result.values()) if isinstance(result, dict) else [result]
