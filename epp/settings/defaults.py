"""The configuration in force when none is given: llm-d's profile. `config/llm-d-default.yaml` has the same text."""

ORIGIN = "built-in default"

TEXT = """\
# llm-d's built-in default, and ours: shortest queue, most free KV cache, longest cached prefix.
# The picker (max-score-picker), the profile handler (single-profile-handler), the parsers and the prefix cache's
# producer are filled in; `epp config show` prints the whole.
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    weight: 2
  - pluginRef: kv-cache-utilization-scorer
    weight: 2
  - pluginRef: prefix-cache-scorer
    weight: 3
"""
