# The graph of notebooks. `rnnbench run` executes it in the report's folder, where it has written the
# validated protocol.yaml and variants/.
from rnnbench_nb.files import PROJECT
from rnnbench_nb.protocol import load_protocol
from rnnbench_nb.launch import analysis_pages, data_pages, runs_of

protocol = load_protocol("protocol.yaml")
data = data_pages(protocol)
analyses = analysis_pages(protocol)
runs = [f"runs/{parameters.run}" for parameters in runs_of(protocol)]
output_dir = Path.cwd()
if output_dir.is_relative_to(PROJECT):
    output_dir = output_dir.relative_to(PROJECT)

# A notebook that fails leaves its partly executed copy and a marker, and the report continues and
# shows the failure. If the kernel ends before the first cell, which happens when two kernels choose
# the same port, papermill runs once more. It is called as one would call it by hand.
execute = (
    "rm -f {output:q}.failed; run() {{ papermill {input.notebook:q} {output:q} %s "
    "--log-output --no-progress-bar > {log:q} 2>&1; }}; "
    """if run || {{ ! grep -qs '"execution_count": [0-9]' {output:q} && run; }}; """
    "then echo done {output:q}; "
    "else touch {output:q} {output:q}.failed; echo FAILED {output:q}, see {log:q}; fi"
)
into_report = "-r output_dir {params.output_dir:q}"


wildcard_constraints:
    variant="|".join(re.escape(variant) for variant in protocol.parameterisations),
    seed="|".join(str(seed) for seed in protocol.seeds),


localrules:
    all,
    render,


rule all:
    input:
        "index.html",
        # These are named here so that a failed or deleted notebook is executed again.
        expand("{run}/02_train.ipynb", run=runs),
        expand("notebooks/{name}.ipynb", name=[*data, *analyses]),


rule explore_data:
    input:
        notebook=".sources/{data}.ipynb",
        protocol="protocol.yaml",
    output:
        "notebooks/{data}.ipynb",
    log:
        "logs/{data}.txt",
    params:
        options=lambda wildcards: data[wildcards.data],
    wildcard_constraints:
        data="|".join(data) or "no page",
    threads: 1
    shell:
        execute % "-y {params.options:q}"


rule train:
    input:
        notebook=".sources/02_train.ipynb",
        parameters="variants/{variant}.yaml",
    output:
        "runs/{variant}-seed{seed}/02_train.ipynb",
    log:
        "logs/{variant}-seed{seed}.txt",
    params:
        output_dir=output_dir,
    threads: 1
    shell:
        execute % f"-f {{input.parameters:q}} -p seed {{wildcards.seed}} {into_report}"


rule analyse:
    input:
        expand("{run}/02_train.ipynb", run=runs),
        notebook=".sources/{notebook}.ipynb",
    output:
        "notebooks/{notebook}.ipynb",
    log:
        "logs/{notebook}.txt",
    params:
        output_dir=output_dir,
    wildcard_constraints:
        notebook="|".join(analyses),
    threads: 1
    shell:
        execute % into_report


rule render:
    input:
        expand("notebooks/{name}.ipynb", name=[*data, *analyses]),
        expand("{run}/02_train.ipynb", run=runs),
    output:
        "index.html",
        "results.csv",
    log:
        "logs/render.txt",
    shell:
        "rnnbench render . > {log:q} 2>&1"
