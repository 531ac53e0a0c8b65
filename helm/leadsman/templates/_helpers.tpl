{{- define "leadsman.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "leadsman.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "leadsman.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "leadsman.selectorLabels" -}}
app.kubernetes.io/name: {{ include "leadsman.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "leadsman.labels" -}}
helm.sh/chart: {{ include "leadsman.chart" . }}
{{ include "leadsman.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: leadsman
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "leadsman.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "leadsman.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "leadsman.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "leadsman.configMap" -}}
{{- .Values.existingConfigMap | default (include "leadsman.fullname" .) }}
{{- end }}

{{/* "true" where several replicas agree on who acts. */}}
{{- define "leadsman.lease" -}}
{{- if .Values.kubernetes.enabled }}
{{- if kindIs "bool" .Values.lease.enabled }}
{{- if .Values.lease.enabled }}true{{ end }}
{{- else if gt (int .Values.replicaCount) 1 }}true{{ end }}
{{- end }}
{{- end }}

{{/* What following releases takes; the same as `leadsman rbac` prints. */}}
{{- define "leadsman.watchRules" -}}
- apiGroups: [""]
  resources: [{{ if eq .Values.kubernetes.driver "configmap" }}configmaps{{ else }}secrets{{ end }}, pods]
  verbs: [get, list, watch]
- apiGroups: [apps]
  resources: [deployments, replicasets, statefulsets, daemonsets]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* What going back takes on top of it. */}}
{{- define "leadsman.turnBackRules" -}}
- apiGroups: [""]
  resources: [{{ if eq .Values.kubernetes.driver "configmap" }}configmaps{{ else }}secrets{{ end }}]
  verbs: [get, list, create, update]
- apiGroups: [""]
  resources: [pods]
  verbs: [delete]
{{- range .Values.rbac.kinds }}
- apiGroups: {{ toJson .apiGroups }}
  resources: {{ toJson .resources }}
  verbs: [get, create, patch, delete]
{{- end }}
{{- with .Values.rbac.extraRules }}
{{ toYaml . }}
{{- end }}
{{- end }}
