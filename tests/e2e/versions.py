"""A configuration that says its version in the headers of every request and response."""

TAG = """
from collections.abc import Mapping
from epp.plugin import Decision, Endpoint, Request

class Tag:
    def request_headers(self, request: Request, decision: Decision) -> Mapping[str, str]:
        return {{"x-version": "{version}"}}

    def response_headers(self, request: Request, decision: Decision, served: Endpoint) -> Mapping[str, str]:
        return {{"x-version": "{version}"}}
"""
CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{{type: ./tag.py}}, {{type: prefix-cache-scorer}}, {{type: active-request-scorer}}]
schedulingProfiles:
- name: default
  plugins: [{{pluginRef: prefix-cache-scorer, weight: {version}}}, {{pluginRef: active-request-scorer}}]
"""
