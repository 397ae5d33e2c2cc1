"""The configuration in force when none is given. `config/default.yaml` has the same text."""

ORIGIN = "built-in default, config/default.yaml"

TEXT = """\
# What the picker does when it is given no configuration: least work ahead, in seconds. There is nothing to tune; the
# scorer learns the engines' speeds from what it sees (`epp plugins work-ahead-scorer`, docs/policy.md). llm-d's default
# is llm-d-default.yaml.
# The picker (max-score-picker), the profile handler (single-profile-handler), the parsers and the prefix cache's
# producer are filled in; `epp config show` prints the whole.
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: work-ahead-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: work-ahead-scorer
"""
