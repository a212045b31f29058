"""A file that was changed in any bit, cut off, put together anew or written by something else is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import random

import pytest
import torch
from safetensors.torch import save as safetensors_of
from test_checkpoints import bits, network

import sdegen
from sdegen import _container


@pytest.fixture
def file(tmp_path):
    model = sdegen.ScoreModel(network(), sdegen.DDPM.linear(20, 1e-3, 0.3), "v")
    sdegen.save(
        tmp_path / "model.safetensors", model, generator=torch.get_rng_state(), curve=[0.5, float("nan"), "\x1f"]
    )
    return tmp_path / "model.safetensors"


def refused(file, data: bytes, match: str = "") -> None:
    """Both readers refuse `data` and name the file, and the network stays as it is."""
    net = network(2)
    before = {name: bits(value) for name, value in net.state_dict().items()}
    file.write_bytes(data)
    for read in (lambda: sdegen.load(file, net), lambda: sdegen.load_state(file)):
        with pytest.raises(ValueError, match=r"The file '.*model\.safetensors' .*" + match):
            read()
    assert {name: bits(value) for name, value in net.state_dict().items()} == before


def parts(file) -> tuple[dict[str, dict[str, object]], bytes]:
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def joined(header: object, body: bytes, spaces: int = 0) -> bytes:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8 + spaces)
    return len(text).to_bytes(8, "little") + text + body


def edited(header, change, sign: bool) -> dict[str, object]:
    """The header with another manifest, as by an editor, or signed as `save` does it."""
    signed = json.loads(header["__metadata__"]["sdegen"])
    change(signed["manifest"])
    text = _container._signed(signed["manifest"]) if sign else json.dumps(signed)
    return {**header, "__metadata__": {"sdegen": text}}


def test_every_flipped_bit_is_found_in_the_header_and_behind_it(file):
    """300, half of them in the header."""
    data = file.read_bytes()
    behind, chance = 8 + int.from_bytes(data[:8], "little"), random.Random(0)
    for k in range(300):
        byte = chance.randrange(behind) if k % 2 else chance.randrange(behind, len(data))
        flipped = bytearray(data)
        flipped[byte] ^= 1 << chance.randrange(8)
        refused(file, bytes(flipped))


def test_every_bit_of_the_table_of_tensors_counts(file):
    """What says where a tensor lies, its dtype and its shape, and the spaces at the end."""
    data = file.read_bytes()
    behind = 8 + int.from_bytes(data[:8], "little")
    table = data.index(b'"},"', 8) + 2
    chance = random.Random(1)
    for byte in [*range(8), *chance.sample(range(table, behind), 60), behind - 1]:
        for bit in range(8):
            file.write_bytes(data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :])
            with pytest.raises(ValueError, match=r"model\.safetensors"):
                sdegen.load_state(file)


def test_every_length_but_its_own_is_refused(file):
    data, (header, _) = file.read_bytes(), parts(file)
    behind = 8 + int.from_bytes(data[:8], "little")
    for percent in range(0, 100, 2):
        length = len(data) * percent // 100
        refused(file, data[:length], "is no whole safetensors file" if length < behind else "is cut off: the tensor '")
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    refused(file, data[:-1], f"is cut off: the tensor '{last}' is not all there")
    for more in (b"\0", bytes(8), b" " * 8, data):
        refused(file, data + more, "is damaged: ")


def test_a_header_that_promises_more_than_there_is_takes_no_memory(file):
    data = file.read_bytes()
    for length in (0, 1, len(data), 2**40, 2**63, 2**64 - 1):
        refused(file, length.to_bytes(8, "little") + data[8:], "is no whole safetensors file: its header is cut off")


def test_tensors_that_are_swapped_renamed_left_out_or_put_in(file):
    header, body = parts(file)
    one, two = "net.first.bias", "net.layers.0.bias"
    assert header[one]["shape"] == header[two]["shape"]
    refused(
        file, joined({**header, one: header[two], two: header[one]}, body), f"the tensor '{one}' is not the one that"
    )
    renamed = {("net.other" if name == one else name): entry for name, entry in header.items()}
    refused(file, joined(renamed, body), f"lacks the tensor '{one}': it was changed after it was written")
    last = "state.generator"
    start = header[last]["data_offsets"][0]
    refused(file, joined({n: e for n, e in header.items() if n != last}, body[:start]), f"lacks the tensor '{last}'")
    extra = {**header, "more": {"dtype": "U8", "shape": [4], "data_offsets": [len(body), len(body) + 4]}}
    refused(file, joined(extra, body + b"1234"), "was not saved with the tensor 'more'")
    shaped = {**header, one: {**header[one], "shape": [2, 4]}}
    refused(file, joined(shaped, body), f"the tensor '{one}' is not the one that was saved")
    refused(file, joined({**header, one: {**header[one], "dtype": "I64"}}, body), f"the tensor '{one}' is not the one")
    refused(file, joined({**header, one: {**header[one], "dtype": "F99"}}, body), "is damaged: Error while")
    refused(file, joined({**header, one: 3}, body), "its header is cut off, damaged or no header")


def test_a_header_that_says_the_same_in_other_bytes(file):
    header, body = parts(file)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    name = json.dumps("net.first.bias")
    twice = f"{text[:-1]},{name}:{json.dumps(header['net.first.bias'], separators=(',', ':'))}}}"
    escaped = text.replace(name, '"\\u006eet.first.bias"', 1)
    for other in (twice, escaped, json.dumps(header), text.replace('{"__', ' {"__', 1)):
        data = other.encode() + b" " * (-len(other.encode()) % 8)
        refused(file, len(data).to_bytes(8, "little") + data + body, "is damaged: its header is not as it was written")
    refused(file, joined(header, body, 8), "is damaged: its header is not as it was written")


def test_a_manifest_that_was_edited(file):
    header, body = parts(file)

    def eps(manifest):
        manifest["model"]["predicts"] = "eps"

    refused(file, joined(edited(header, eps, sign=False), body), "is damaged: its manifest is not as it was written")
    newer = edited(header, lambda m: m.update(schema=2, version="7.0"), sign=True)
    refused(
        file, joined(newer, body), r"was written by sdegen 7.0 in schema 2, and this one reads up to 1: update sdegen"
    )
    for text in ("{}", "[]", "3", "", '{"manifest": {}}', "[" * 5000, '{"manifest": {"schema": null, "tensors": []}}'):
        refused(file, joined({**header, "__metadata__": {"sdegen": text}}, body), "its manifest cannot be read")


FORGED = {
    "no path": lambda m: m.pop("path"),
    "a class": lambda m: m["path"].update({"class": "os.system"}),
    "an argument": lambda m: m["path"]["arguments"].update(evil=3),
    "betas": lambda m: m["path"]["arguments"].update(betas=[2.0]),
    "a kind": lambda m: m.update(weights={"py/object": "x"}),
    "no tree": lambda m: m.update(weights="x"),
    "no model": lambda m: m.update(model=[]),
    "units": lambda m: m["model"].update(standardize=True),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_manifest_of_another_maker_describes_nothing(name, file):
    """Signed as it should be: then it is the words themselves that are refused, before the network is touched."""
    header, body = parts(file)
    file.write_bytes(joined(edited(header, FORGED[name], sign=True), body))
    with pytest.raises(
        ValueError, match=r"model.safetensors' holds a manifest that describes nothing this version knows"
    ):
        sdegen.load(file, network(2))


class Trap:
    """What a pickle would run."""

    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize("kind", ["today's", "legacy", "pickle"])
def test_a_pickle_in_disguise_is_not_opened(kind, file):
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Trap()))
    else:
        torch.save({"trap": Trap()}, file, _use_new_zipfile_serialization=kind == "today's")
    refused(file, file.read_bytes(), "is a pickle, as torch.save writes it, which could run code: it is not opened")


def test_files_of_others_are_told_from_ours(file):
    foreign = "holds no manifest of sdegen's: read it by safetensors.torch.load_file"
    for metadata in (None, {"format": "pt"}):
        refused(file, safetensors_of({"net.first.bias": torch.ones(8)}, metadata), foreign)
    for data in (b"", b"\0" * 100, b"hello, world", pickle.dumps([1], protocol=0), random.Random(0).randbytes(1000)):
        refused(file, data, "is no whole safetensors file")
    for header in ([], 3, {"__metadata__": 3}, {"a": 3}, {"a": {"data_offsets": "no"}}):
        refused(file, joined(header, b""), "is no whole safetensors file")
    deep = b"[" * 100_000 + b"]" * 100_000
    refused(file, len(deep).to_bytes(8, "little") + deep, "is no whole safetensors file")
