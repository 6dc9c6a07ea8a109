"""The manifest: the provenance records of all jobs of the experiment, and the hash of every file that these have made."""


# It has no log among the results, because it could not hash that; it takes seconds, and its errors are on the terminal.
rule manifest:
    input:
        records=[record(output) for output in jobs.all_jobs(experiment)],
    output:
        "results/manifest.json",
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        source=fingerprint("resurface.reproducibility.manifest"),
        experiment=dump_settings(experiment),
    shell:
        "resurface manifest --experiment {params.experiment:q} --output {output}"
