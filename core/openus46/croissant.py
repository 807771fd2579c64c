"""The registry as Croissant metadata (mlcommons.org/croissant/1.0): what each data set is, its licence and where it comes from."""

from __future__ import annotations

from typing import Any

from usfmae.core import __version__
from usfmae.core.openus46.registry import Dataset, registry

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "equivalentProperty": "cr:equivalentProperty",
    "samplingRate": "cr:samplingRate",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
FIELDS = {
    "id": ("sc:Text", "its name here"),
    "name": ("sc:Text", "its published name"),
    "anatomy": ("sc:Text", "what is imaged"),
    "images": ("sc:Integer", "images in Table 1 of the USF-MAE paper"),
    "role": ("sc:Text", "pretrain or benchmark"),
    "licence": ("sc:Text", "its licence, as its authors state it"),
    "licence_class": ("sc:Text", "permissive, non-commercial, agreement or unknown"),
    "registration": ("sc:Text", "whether one must register to get it"),
    "url": ("sc:URL", "where it comes from"),
}
CITATION = "USF-MAE: Ultrasound Self-Supervised Foundation Model with Masked Autoencoding, OpenUS-46"


def metadata() -> dict[str, Any]:
    """JSON-LD that `mlcroissant validate` accepts: the data sets as records, no image and no copy of any of them."""
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "OpenUS-46-registry",
        "description": "The 46 public ultrasound data sets of USF-MAE's pretraining corpus: anatomy, count, licence, source. "
        "Metadata alone: each data set is fetched from its authors, under their licence.",
        "version": __version__,
        "license": "https://www.apache.org/licenses/LICENSE-2.0",
        "url": "https://arxiv.org/abs/2510.22990",
        "citeAs": CITATION,
        "datePublished": "2026-01-01",
        "isLiveDataset": False,
        "distribution": [],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "datasets",
                "name": "datasets",
                "description": "One record a data set.",
                "key": {"@id": "datasets/id"},
                "field": [_field(name, kind, text) for name, (kind, text) in FIELDS.items()],
                "data": [_record(dataset) for dataset in registry().values()],
            }
        ],
    }


def _field(name: str, kind: str, text: str) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": f"datasets/{name}", "name": name, "description": text, "dataType": kind}


def _record(dataset: Dataset) -> dict[str, Any]:
    values = dataset.model_dump(mode="json") | {"url": dataset.link}
    return {f"datasets/{name}": values[name] for name in FIELDS}
