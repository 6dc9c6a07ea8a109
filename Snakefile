"""Resurface: unlearn, attack, score, report.

Every rule is one `resurface` command. The configuration is `config.yaml` unless `--configfile` names another: the two are
never merged, because values of the testbed would survive into a real experiment.
"""

from pathlib import Path

from snakemake.utils import min_version

from resurface.config_file import check_config_files
from resurface.errors import ResurfaceError
from resurface.orphans import name_scheduler
from resurface.warm_start import start_server

min_version("9.27")

try:  # before Snakemake reads the file, because it would run what a template in it says
    check_config_files(map(Path, workflow.overwrite_configfiles or ["config.yaml"]))
except ResurfaceError as error:
    raise WorkflowError(str(error)) from None

if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/preferences.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/unlearn.smk"
include: "workflow/rules/attack.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/audit.smk"


report: "workflow/report/workflow.rst"


onstart:
    if workflow.storage_settings.default_storage_provider is None:
        refuse_full_disk()
    if workflow.local_exec:
        name_scheduler()
        start_server()


rule all:
    default_target: True
    input:
        SUMMARY,
        REPORT,
        "results/manifest.json",
