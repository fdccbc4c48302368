"""Attention as operators of PyTorch: traced without a GPU, run only by what was named."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import transformers

from lepto.kernels.attention import attention, attention_varlen
from lepto.kernels.ship import (
    aoti,
    library,  # noqa: F401 - registers the operators
)
from lepto.kernels.ship.transformers import install


class Layer(torch.nn.Module):
    def __init__(self, implementation: str) -> None:
        super().__init__()
        self.implementation = implementation

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        out = torch.ops.lepto.attention(q * 2, k, v, lengths, implementation=self.implementation)
        return out.transpose(1, 2).flatten(2)


class Packed(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: torch.Tensor) -> torch.Tensor:
        return torch.ops.lepto.attention_varlen(q, k, v, cu, cu, 9, 9, causal=True, window_left=4)


def qkv(batch: int = 2, rows: int = 9) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    return [torch.randn(batch, heads, rows, 16, generator=gen) for heads in (4, 2, 2)]


def targets(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_export_keeps_one_node_with_dynamic_sizes_and_it_runs():
    lengths = torch.tensor([9, 4], dtype=torch.int32)
    batch, rows = torch.export.Dim("batch"), torch.export.Dim("rows", min=2)
    shape = {0: batch, 2: rows}
    program = torch.export.export(Layer("triton"), (*qkv(), lengths), dynamic_shapes=(shape, shape, shape, {0: batch}))
    assert targets(program).count("lepto.attention.default") == 1
    others = qkv(3, 21)
    lengths = torch.tensor([21, 1, 5], dtype=torch.int32)
    expected = attention(others[0] * 2, *others[1:], lengths=lengths)
    out = program.module()(*others, lengths)
    torch.testing.assert_close(out, expected.transpose(1, 2).flatten(2))


def test_a_saved_program_is_loaded_and_gives_the_same(tmp_path):
    lengths = torch.tensor([9, 4], dtype=torch.int32)
    program = torch.export.export(Layer("reference"), (*qkv(), lengths))
    torch.export.save(program, tmp_path / "program.pt2")
    again = torch.export.load(tmp_path / "program.pt2")
    assert torch.equal(again.module()(*qkv(), lengths), program.module()(*qkv(), lengths))


def test_varlen_is_exported_and_is_the_kernel():
    x = [torch.randn(14, 2, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    cu = torch.tensor([0, 9, 9, 14], dtype=torch.int32)
    program = torch.export.export(Packed(), (*x, cu))
    assert targets(program) == ["lepto.attention_varlen.default"]
    expected = attention_varlen(*x, cu, max_seqlen_q=9, causal=True, window=(4, -1))
    assert torch.equal(program.module()(*x, cu), expected)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_compiled_is_eager(implementation):
    layer = Layer(implementation)
    lengths = torch.tensor([9, 4], dtype=torch.int32)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*qkv(), lengths), layer(*qkv(), lengths))


def test_the_operators_pass_pytorchs_own_checks():
    q, k, v = qkv()
    torch.library.opcheck(
        torch.ops.lepto.attention.default,
        (q, k, v, torch.tensor([9, 4], dtype=torch.int32)),
        test_utils=("test_schema", "test_faketensor"),
    )
    cu = torch.tensor([0, 4, 9], dtype=torch.int32)
    x = torch.randn(9, 2, 16)
    torch.library.opcheck(
        torch.ops.lepto.attention_varlen.default, (x, x, x, cu, cu, 5, 5), test_utils=("test_schema", "test_faketensor")
    )


def test_a_wrong_model_is_refused_while_it_is_traced():
    bad = [torch.randn(2, 2, 9, 17) for _ in range(3)]
    with pytest.raises(Exception, match="head_dim must be a multiple of 8 from 16 to 256, got 17"):
        torch.export.export(Layer("triton"), (*bad, torch.tensor([9, 4], dtype=torch.int32)))
    with pytest.raises(Exception, match="implementation must be one of triton, reference, got 'flash'"):
        torch.export.export(Layer("flash"), (*qkv(), torch.tensor([9, 4], dtype=torch.int32)))


def test_a_model_of_transformers_is_exported_with_one_node_a_layer():
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    model = transformers.BertForSequenceClassification(config).eval()
    x, mask = torch.randint(0, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    with torch.no_grad():
        eager = model(input_ids=x, attention_mask=mask).logits
        model.set_attn_implementation(install())
        program = torch.export.export(model, (), {"input_ids": x, "attention_mask": mask})
        assert targets(program).count("lepto.attention.default") == 2
        ours = program.module()(input_ids=x, attention_mask=mask).logits
    torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-4)


def test_without_gpu_and_interpreter_tracing_works_and_running_is_an_error():
    code = """
import torch
from lepto.kernels.ship import library
q = torch.randn(1, 2, 5, 16)
class M(torch.nn.Module):
    def forward(self, q):
        return torch.ops.lepto.attention(q, q, q)
program = torch.export.export(M(), (q,))
assert any("lepto.attention" in str(n.target) for n in program.graph.nodes)
for run in (program.module(), torch.compile(M(), backend="aot_eager")):
    try:
        run(q)
    except Exception as error:
        assert "implementation='triton' needs tensors on a CUDA device, these are on cpu" in str(error), error
    else:
        raise SystemExit("it ran")
print(torch.ops.lepto.attention(q, q, q, implementation="reference").shape)
"""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "torch.Size([1, 2, 5, 16])" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_aotinductor_package_needs_a_gpu_and_that_is_said(tmp_path):
    lengths = torch.tensor([9, 4], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"compiled on the GPU that runs it, and no NVIDIA GPU is here: .* cubins"):
        aoti.package(Layer("triton"), (*qkv(), lengths), tmp_path / "layer.pt2")
    with pytest.raises(ValueError, match=r"must be called NAME.pt2, got 'layer.zip'"):
        aoti.package(Layer("triton"), (*qkv(), lengths), tmp_path / "layer.zip")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_aotinductor_package_takes_what_is_on_a_gpu_with_kernels(tmp_path, monkeypatch):
    lengths = torch.tensor([9, 4], dtype=torch.int32)
    path = tmp_path / "layer.pt2"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(RuntimeError, match="nothing can be compiled while Triton interprets"):
        aoti.package(Layer("triton"), (*qkv(), lengths), path)
    monkeypatch.setattr(aoti, "interpreted", lambda kernel: False)
    with pytest.raises(ValueError, match="the architecture is sm_75: Triton emits no tensor-core instruction"):
        aoti.package(Layer("triton"), (*qkv(), lengths), path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(ValueError, match="input 0 must be on the GPU, it is on cpu"):
        aoti.package(Layer("triton"), (*qkv(), lengths), path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_an_aotinductor_package_gives_what_the_layer_gives(tmp_path):
    """In a process that does not interpret: the kernels of this one cannot be compiled."""
    code = f"""
import torch
from lepto.kernels.ship import aoti, library
class Layer(torch.nn.Module):
    def forward(self, q):
        return torch.ops.lepto.attention(q, q, q)
q = torch.randn(2, 4, 33, 64, device="cuda", dtype=torch.float16)
loaded = torch._inductor.aoti_load_package(str(aoti.package(Layer(), (q,), {str(tmp_path / "layer.pt2")!r})))
torch.testing.assert_close(loaded(q), Layer()(q))
"""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
