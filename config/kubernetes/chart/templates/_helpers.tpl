{{- define "epp.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "epp.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Cluster-wide objects of two releases of one name in two namespaces are two. */}}
{{- define "epp.clustername" -}}
{{- printf "%s-%s" .Release.Namespace (include "epp.fullname" .) }}
{{- end }}

{{- define "epp.selector" -}}
app.kubernetes.io/name: {{ include "epp.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "epp.labels" -}}
{{ include "epp.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "epp.serviceaccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "epp.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "epp.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "epp.modellabels" -}}
{{- toYaml (default (dict "app" "vllm") .Values.modelServers.labels) }}
{{- end }}

{{- define "epp.pool" -}}
{{- default (include "epp.fullname" .) .Values.pool.name }}
{{- end }}

{{- define "epp.poolgroup" -}}
{{- ternary "inference.networking.x-k8s.io" "inference.networking.k8s.io" (eq .Values.pool.apiVersion "v1alpha2") }}
{{- end }}

{{- /* Text if replicas elect a leader, else nothing. */}}
{{- define "epp.elects" -}}
{{- if or (eq .Values.leaderElection "on") (and (eq .Values.leaderElection "auto") (gt (int .Values.replicas) 1) (not .Values.envoy.enabled)) }}
{{- "yes" }}
{{- end }}
{{- end }}

{{- define "epp.prestop" -}}
{{- if kindIs "invalid" .Values.preStopSeconds }}
{{- ternary 20 5 (eq (include "epp.elects" .) "yes") }}
{{- else }}
{{- int .Values.preStopSeconds }}
{{- end }}
{{- end }}

{{- define "epp.configmap" -}}
{{- if .Values.config }}
{{- printf "%s-config" (include "epp.fullname" .) }}
{{- else }}
{{- .Values.configMapName }}
{{- end }}
{{- end }}

{{- define "epp.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- /* A flag's value as one would write it: Go prints large numbers as 3.3e+07. */}}
{{- define "epp.value" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}
{{- int64 . }}
{{- else }}
{{- . }}
{{- end }}
{{- end }}

{{- /* What values.schema.json can't say. */}}
{{- define "epp.check" -}}
{{- if and .Values.config .Values.configMapName }}
{{- fail "config and configMapName exclude each other: leave one of them empty" }}
{{- end }}
{{- if and (not .Values.pool.enabled) (not .Values.envoy.enabled) }}
{{- fail "pool.enabled is false, which is of use with envoy.enabled only: a gateway finds the picker through an InferencePool" }}
{{- end }}
{{- if and .Values.objectives (not .Values.pool.enabled) }}
{{- fail "objectives are those of an InferencePool: set pool.enabled" }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.pool.enabled) }}
{{- fail "httpRoute.enabled: the route leads to an InferencePool: set pool.enabled" }}
{{- end }}
{{- if and .Values.envoy.enabled (eq .Values.leaderElection "on") }}
{{- fail "leaderElection on: with envoy.enabled each replica has a picker of its own; leave it at auto" }}
{{- end }}
{{- if and (eq .Values.pool.apiVersion "v1alpha2") (gt (len .Values.modelServers.ports) 1) .Values.pool.create }}
{{- fail "modelServers.ports: an InferencePool of v1alpha2 has one port; set pool.apiVersion to v1" }}
{{- end }}
{{- if and .Values.serviceMonitor.enabled .Values.metrics.auth (not .Values.serviceMonitor.createToken) (not .Values.serviceMonitor.secretName) }}
{{- fail "serviceMonitor.secretName: with metrics.auth the scrape needs a token; name a secret or set serviceMonitor.createToken" }}
{{- end }}
{{- range $name := list "pool-name" "pool-group" "pool-namespace" "endpoint-selector" "endpoint-target-ports" "config-file" "cert-path" "secure-serving" "drain-timeout" "metrics-endpoint-auth" "ha-enable-leader-election" "grpc-port" "grpc-health-port" "metrics-port" }}
{{- if hasKey $.Values.flags $name }}
{{- fail (printf "flags.%s: the chart sets it from other values" $name) }}
{{- end }}
{{- end }}
{{- end }}
