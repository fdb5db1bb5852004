"""Sweeps: a picture for every combination of prompts, references, knobs and seeds, in a folder that can be completed.

plan -> jobs -> run. A job's key is a hash of all that decides its picture, so that a folder knows what it has. Each
reference is read once per text for all layers of the plan, each prompt is encoded once, and every picture is the one
that a single call with the same knobs paints, bit for bit. So jobs are not batched: in a batch the last bits differ.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..blend.knobs import PLACES, VLConditioning
from ..pipeline.inputs import is_guided
from ..reference.embeds import ReferenceEmbeds
from ..reference.pictures import hide_secrets, load_reference_image, read_image_bytes
from ..reference.reading import resolve_layers
from .errors import is_out_of_memory
from .files import save_png, whole_file
from .manifest import PICTURES, REFERENCES, Manifest
from .sweep_plan import OF_READING, SOURCES, SweepPlan, as_list, describe_knobs, make_conditioning, merge_knobs


_KEPT_FILES, _KEPT_READINGS, _KEPT_PROMPTS = 16, 8, 512
_THUMBNAIL = 256  # the longer side, in pixels


def run_sweep(
    plan: SweepPlan,
    folder: Path,
    load: Callable[[], Any] | None,
    *,
    origin: Mapping[str, Any],
    identity: str = "",
    numbers: Iterable[int] | None = None,
    explain: Callable[[Exception], str] = str,
) -> Iterator[dict[str, Any]]:
    """Paint what a folder lacks of a plan, one picture after another; each is on the disk before the next begins.

    Args:
        plan: The plan.
        folder: One that `prepare_folder` has made.
        load: Gives the pipeline, once it is needed. None: nothing is painted or written.
        origin: What is recorded of the models: model, revision, vl_model, device, dtype, versions.
        identity: Tells models of one name apart.
        numbers: The jobs to do; None: all.
        explain: Says in a line what was wrong with a job.

    Yields:
        A line of the manifest per job. Its status is "done"; "failed", which does not end the run; "kept" where the
        picture was there; or, without `load`, "planned", and then it names the "readings" that the job needs.

    Raises:
        OSError: The disk is full, or the models cannot be loaded.
        ValueError: The plan asks for a layer that the reader does not have.

    Example:
        >>> import tempfile
        >>> from zimage_vl.toy import load_toy_pipeline
        >>> from zimage_vl.workflows.manifest import prepare_folder
        >>> painting = {"size": [(64, 64)], "steps": [1], "guidance": [0.0], "seed": [0]}
        >>> plan, folder = SweepPlan({"prompt": ["a circle"], **painting}), Path(tempfile.mkdtemp())
        >>> prepare_folder(folder)
        >>> for _ in range(2):
        ...     print([row["status"] for row in run_sweep(plan, folder, load_toy_pipeline, origin={"model": "toy"})])
        ['done']
        ['kept']
    """
    manifest, painter = Manifest(folder), _Painter(plan, load, origin, identity)
    done = {entry.key: entry for entry in manifest.entries() if entry.done}
    looked_at: set[Path] = set()  # thumbnails, which many jobs share
    for number in range(len(plan)) if numbers is None else numbers:
        job = painter.describe(number)
        file = f"{PICTURES}/{job.key}.png"
        row: dict[str, Any] = {"job": number, "key": job.key, "status": "kept", "file": file}
        if job.key in done and manifest.has_picture(done[job.key]):
            if load is not None:
                _keep_thumbnails(job, folder, looked_at)
            yield row
            continue
        if job.failure is None:
            if load is None:
                yield {**row, "status": "planned", "readings": _name_readings(job), **job.record}
                continue
            _ = painter.pipe  # what is wrong with the models is no job's fault, and loading them none of its time
        start, reports = time.perf_counter(), {"report": None, "negative_report": None}
        try:
            image, reports = painter.paint(job)
        except Exception as error:
            # A job's own are bad values, and what is too large for the memory.
            if error is not job.failure and not isinstance(error, ValueError) and not is_out_of_memory(error):
                raise
            row |= {"status": "failed", "file": None, "sha256": None, "error": explain(error)}
        else:
            save_png(image, png := io.BytesIO(), {**job.record, **reports})
            manifest.path.touch()  # pictures without one are of something else
            with whole_file(folder / file) as written:
                written.write(png.getvalue())
            _keep_thumbnails(job, folder, looked_at)
            row |= {"status": "done", "sha256": hashlib.sha256(png.getvalue()).hexdigest(), "error": None}
        row["seconds"] = round(time.perf_counter() - start, 3)
        row["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        row |= {**job.record, **reports}
        if load is not None:
            manifest.append(row)
        yield row


def count_operations(width: int, height: int, steps: int, guided: bool = False) -> float:
    """Get the floating-point operations of a picture in Z-Image's transformer, which are nearly all of its cost.

    Per step `2 x 6.15e9 x tokens` for the products with the weights, and `4 x tokens^2 x 3840 x 34` for the attention
    of 34 blocks of width 3840. A token is 16 x 16 pixels; 128 more are the prompt's. Guidance doubles it.

    Example:
        >>> f"{count_operations(1024, 1024, 9):.1e}"
        '5.5e+14'
    """
    tokens = (width // 16) * (height // 16) + 128
    return steps * (1 + guided) * (2 * 6.15e9 * tokens + 4 * tokens**2 * 3840 * 34)


# ---- One job ----


class _File:
    """A picture, decoded when it is needed, which for a job that is done it is not; or embeddings."""

    def __init__(self, name: str, path: str) -> None:
        self._label, self._data, self._embeds = f"{SOURCES[name]} {hide_secrets(path)}", b"", None
        if name.endswith("_embeds"):
            self._embeds = ReferenceEmbeds.load(path)  # which judges it by its first bytes, however large it is
            data = Path(path).read_bytes()
        else:
            data = self._data = read_image_bytes(path, SOURCES[name])
        self.digest = hashlib.sha256(data).hexdigest()

    @cached_property
    def content(self) -> Any:
        return self._embeds or load_reference_image(self._data, self._label)


@dataclass(frozen=True)
class _Job:
    values: dict[str, Any]
    knobs: dict[str, Any]
    conditioning: VLConditioning
    files: dict[str, list[_File]]
    failure: Exception | None  # of the first file that cannot be read
    record: dict[str, Any]
    key: str


class _Recent:
    """The last things that were made, by what they were made of."""

    def __init__(self, most: int) -> None:
        self._most, self._items = most, OrderedDict[Hashable, Any]()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._items:
            self._items[key] = make()
        self._items.move_to_end(key)
        while len(self._items) > self._most:
            self._items.popitem(last=False)
        return self._items[key]


class _Painter:
    """Paints jobs; what neighbours have in common is made once: files opened, pictures read, prompts encoded."""

    def __init__(
        self, plan: SweepPlan, load: Callable[[], Any] | None, origin: Mapping[str, Any], identity: str
    ) -> None:
        self._plan, self._load, self._origin, self._identity = plan, load, origin, identity
        self._files, self._readings = _Recent(_KEPT_FILES), _Recent(_KEPT_READINGS)
        self._prompts = _Recent(_KEPT_PROMPTS)

    @cached_property
    def pipe(self) -> Any:
        pipe: Any = self._load and self._load()
        pipe.set_progress_bar_config(disable=True)
        if "reference_image" in self._plan.axes:
            for reader, layers in self._plan.layers.items():
                resolve_layers(layers, pipe.find_reader(reader).num_hidden_layers)
        return pipe

    def describe(self, number: int) -> _Job:
        """A job with what is in its files, and what `zimage-vl generate` would record of it."""
        values = self._plan[number]
        knobs = merge_knobs(values)
        conditioning = make_conditioning(knobs, "neutral_image" in knobs)
        files: dict[str, list[_File]] = {}
        sources: list[dict[str, Any]] = []
        failure: Exception | None = None
        for name, option in SOURCES.items():
            for path in as_list(knobs.get(name)):
                found, digest = self._files.get((name, path), partial(_open, name, path)), None
                if isinstance(found, _File):
                    files.setdefault(name, []).append(found)
                    digest = found.digest
                else:
                    failure = failure or found
                sources.append({"option": option, "name": Path(hide_secrets(path)).name, "sha256": digest})
        record = {
            "prompt": values["prompt"],
            **{name: value for name, value in self._origin.items() if name != "versions"},
            **{name: values.get(name) for name in ("recipe", "negative_prompt")},
            **dict(zip(("width", "height"), values["size"], strict=True)),
            **{name: values[name] for name in ("steps", "guidance")},
            "num_images": 1,
            "references": sources,
            "reference_acts": bool(sources) and not conditioning.is_inert,
            "knobs": describe_knobs(knobs, conditioning) if sources else None,
            "versions": self._origin.get("versions"),
            "init_image": None,
            "statistics": None,
            "seed": values["seed"],
        }
        decides = {name: value for name, value in record.items() if name not in ("device", "versions")}
        key = hashlib.sha256(json.dumps([self._identity, decides], sort_keys=True).encode()).hexdigest()[:20]
        return _Job(values, knobs, conditioning, files, failure, record, key)

    def paint(self, job: _Job) -> tuple[Image.Image, dict[str, Any]]:
        """What one call paints, and its reports."""
        if job.failure is not None:
            raise job.failure
        values = job.values
        words = {"prompt": values["prompt"], "negative_prompt": values.get("negative_prompt")}
        contents = {name: [one.content for one in found] for name, found in job.files.items()}
        knobs = job.knobs | {name: _call_form(found) for name, found in contents.items()}
        # Neutral and negative pictures are read under the knobs of the others: all is left to the call.
        if not any(name.startswith(("negative_", "neutral_")) for name in job.files):
            if "reference_image" in job.files:
                knobs = {name: x for name, x in knobs.items() if name not in OF_READING} | self._read(job)
            alpha = job.conditioning.vl_alpha
            if not isinstance(alpha, Mapping) or alpha.keys() <= {*PLACES}:  # phrases need the words
                words = self._encode(job)
        output = self.pipe(
            **words,
            **knobs,
            **dict(zip(("width", "height"), values["size"], strict=True)),
            num_inference_steps=values["steps"],
            guidance_scale=values["guidance"],
            # On the CPU on every machine: the same seed starts from the same noise.
            generator=[torch.Generator("cpu").manual_seed(values["seed"])],
        )
        reports = {"report": output.conditioning, "negative_report": output.negative_conditioning}
        return output.images[0], {name: each and [one.to_dict() for one in each] for name, each in reports.items()}

    def _read(self, job: _Job) -> dict[str, Any]:
        """The references as embeddings on the CPU, in the place of the pictures and of how they are read."""
        used, pictures = job.conditioning, job.files["reference_image"]
        masks = job.files.get("reference_mask", [])
        if used.is_inert:
            return {"vl_text": ""}  # nothing is read; but a call without words wants to know what to read
        if len(masks) not in (0, 1, len(pictures)):
            raise ValueError(f"`reference_mask` has {len(masks)} masks for {len(pictures)} references.")
        options = {
            "text_position": used.vl_text_position,
            "max_pixels": used.vl_max_pixels,
            "vl_reader": used.vl_reader,
            "vl_treatment": job.knobs.get("vl_treatment", "none"),
            "describe": job.knobs.get("vl_describe", False),
            "muted": self._plan.muted,
        }
        embeds: list[ReferenceEmbeds] = []
        for place, (picture, key) in enumerate(zip(pictures, _name_readings(job), strict=True)):
            mask = masks[place % len(masks)].content if masks else None
            encode = partial(self.pipe.encode_reference, picture.content, _reading_text(job), mask=mask, **options)
            layers = self._plan.layers[used.vl_reader]
            embeds.append(self._readings.get(key, lambda encode=encode, layers=layers: _on_cpu(encode(layers))))
        return {"reference_image": None, "reference_mask": None, "reference_embeds": _call_form(embeds)}

    def _encode(self, job: _Job) -> dict[str, Any]:
        """The prompts as embeddings, which are kept on the CPU."""
        guided = is_guided(job.values["guidance"])
        negative = self._encode_prompt(job.values.get("negative_prompt") or "") if guided else None
        return {"prompt_embeds": self._encode_prompt(job.values["prompt"]), "negative_prompt_embeds": negative}

    def _encode_prompt(self, text: str) -> list[Tensor]:
        encode = partial(self.pipe.encode_prompt_with_reference, text, do_classifier_free_guidance=False)
        made: Tensor = self._prompts.get(text, lambda: encode().prompt_embeds[0].cpu())
        return [made.to(self.pipe._execution_device)]


def _on_cpu(embeds: ReferenceEmbeds) -> ReferenceEmbeds:
    states, muted = (
        {layer: x.cpu() for layer, x in held.items()} for held in (embeds.hidden_states, embeds.muted_states)
    )
    return replace(embeds, hidden_states=states, muted_states=muted, regions=embeds.regions.cpu())


def _reading_text(job: _Job) -> str:
    return "" if job.knobs.get("vl_describe") else job.knobs.get("vl_text", job.values["prompt"])


def _name_readings(job: _Job) -> list[str]:
    """What each of a job's readings is made of: picture, mask, text, and how it is read."""
    used, masks = job.conditioning, job.files.get("reference_mask", [])
    how = [job.knobs.get("vl_treatment"), job.knobs.get("vl_describe"), used.vl_reader, used.vl_text_position]
    return [
        repr([one.digest, masks and masks[place % len(masks)].digest, _reading_text(job), *how, used.vl_max_pixels])
        for place, one in enumerate([] if used.is_inert else job.files.get("reference_image", []))
    ]


def _open(name: str, path: str) -> _File | Exception:
    """A file, or what is wrong with it: a slow address is asked once."""
    try:
        return _File(name, path)
    except (OSError, ValueError) as error:
        return error


def _call_form(items: list[Any]) -> Any:
    return items[0] if len(items) == 1 else [items]  # several for the one prompt


def _keep_thumbnails(job: _Job, folder: Path, looked_at: set[Path]) -> None:
    """The references in small, for the page, which may be looked at where they are not."""
    for one in job.files.get("reference_image", []):
        path = folder / REFERENCES / f"{one.digest[:20]}.jpg"
        if path not in looked_at and not _is_picture_file(path):
            small = one.content.copy()
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            with whole_file(path) as file:
                small.save(file, format="JPEG", quality=90, subsampling=0)
        looked_at.add(path)


def _is_picture_file(path: Path) -> bool:
    with suppress(OSError, ValueError):
        return path.is_file() and bool(load_reference_image(path))
    return False
