"""Export results as a Workflow Run RO-Crate (https://w3id.org/ro/wfrun/workflow/0.5): a folder that describes itself.

Archives read such crates: which workflow was run with which configuration, and of each job what it read and wrote. Weights
of models are left out unless asked for, and so is of public domains, which are hazardous, what holds their text or brings the
knowledge back; the manifest in the crate still names the hashes of all that.
"""

import json
from pathlib import Path
from typing import Any

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from resurface.artifacts import publish
from resurface.errors import ResurfaceError
from resurface.reproducibility.manifest import HASHES, MANIFEST, ROOT, place
from resurface.reproducibility.record import SUFFIX, Record
from resurface.reproducibility.reproduce import check_workflow
from resurface.reproducibility.verify import read_experiment, require_verified
from resurface.settings.sources import PUBLIC_DOMAINS

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
CONFIGURATION = "config.json"
WEIGHTS = (f"{ROOT}/models/", f"{ROOT}/unlearned/", f"{ROOT}/testbed/", f"{ROOT}/taught/")
SENSITIVE = (
    f"{ROOT}/data/sources/",
    *(f"{ROOT}/{kind}/{domain}/" for kind in ("data", "attacks") for domain in PUBLIC_DOMAINS),
)


def export_crate(
    results: Path,
    output: Path,
    snakefile: Path,
    with_checkpoints: bool = False,
    with_sensitive: bool = False,
    follow_links: bool = False,
) -> None:
    """Write a results folder, and the workflow that made it, as a crate.

    Args:
        results: the folder; it must pass `verify`, apart from having been made by other source.
        output: the folder to write.
        snakefile: the workflow of this checkout.
        with_checkpoints: whether the weights of models are copied too.
        with_sensitive: whether, of public domains, corpora, questions, what attacks left and the report that shows it are copied too.
        follow_links: see `verify`.

    Raises:
        ResurfaceError: the results do not pass, the output is there already, or there is no workflow.
    """
    if output.exists():
        raise ResurfaceError(f"{output}: this is there already; name a new folder")
    check_workflow(snakefile)
    manifest = require_verified(results, follow_links)
    crate = ROCrate(version="1.1")
    crate.name = "Resurface: what unlearned models still know"
    crate.description = "Models are unlearned and attacked, and a summary says what resurfaces, next to a control that never learned it."
    crate.license = "https://spdx.org/licenses/MIT"
    for address, name in PROFILES.items():
        crate.add(ContextEntity(crate, address, {"@type": "CreativeWork", "name": name, "version": address[-3:]}))
    crate.root_dataset["conformsTo"] = [{"@id": address} for address in PROFILES]

    with publish(output) as temporary:
        temporary.mkdir()
        configuration = temporary.with_suffix(".config")
        try:
            configuration.write_text(json.dumps(manifest.experiment, indent=1, sort_keys=True))
            workflow = add_workflow(crate, snakefile)
            settings = crate.add_file(configuration, CONFIGURATION, properties={"name": "Configuration"})
            is_public = any(name in PUBLIC_DOMAINS for name in read_experiment(manifest).domains)
            sensitive = (*SENSITIVE, f"{ROOT}/report.html") if is_public else ()
            files = {
                name: crate.add_file(
                    place(results, name), name, properties={"name": name.rsplit("/", 1)[-1], "sha256": found}
                )
                for name, found in manifest.files.items()
                if (with_checkpoints or not (name.startswith(WEIGHTS) and name.endswith(".safetensors")))
                and (with_sensitive or not name.startswith(sensitive) or name.endswith((HASHES, SUFFIX)))
            }
            files[MANIFEST] = crate.add_file(results / MANIFEST, f"{ROOT}/{MANIFEST}", properties={"name": MANIFEST})
            run = {"name": "The whole experiment", "description": f"Manifest digest {manifest.digest}"}
            crate.add_action(workflow, object=[settings], result=list(files.values()), properties=run)
            program = crate.add(
                ContextEntity(crate, "#resurface", {"@type": "SoftwareApplication", "name": "resurface"})
            )
            for path, record in manifest.records.items():
                add_job(crate, program, path, record, files)
            crate.write(temporary)
        finally:
            configuration.unlink(missing_ok=True)


def add_workflow(crate: ROCrate, snakefile: Path) -> Any:
    """Add the workflow and the files that it includes; the workflow's entity."""
    workflow = crate.add_workflow(
        snakefile, snakefile.name, main=True, lang="snakemake", properties={"name": "Resurface"}
    )
    for path in sorted(snakefile.parent.glob("workflow/rules/*.smk")):
        crate.add_file(path, path.relative_to(snakefile.parent).as_posix(), properties={"name": path.name})
    return workflow


def add_job(crate: ROCrate, program: Any, path: str, record: Record, files: dict[str, Any]) -> None:
    """Add a job as an action of the program: what it read, what it wrote, and how."""
    name = record.rule if record.name is None else f"{record.rule} {record.name}"
    facts = {
        "wall_seconds": record.wall_seconds,
        "peak_memory": record.peak_memory,
        "device": record.device.name,
        "source": record.source,
    }
    crate.add_action(
        program,
        identifier=f"#{path}",
        object=[files[read] for read in record.inputs if read in files],
        result=[files[made] for made in record.outputs if made in files],
        properties={"name": name, "description": f"{' '.join(record.command)}\n{json.dumps(facts, sort_keys=True)}"},
    )
