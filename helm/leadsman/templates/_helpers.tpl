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

{{/* Quoted, as a name may look like a number. */}}
{{- define "leadsman.selectorLabels" -}}
app.kubernetes.io/name: {{ include "leadsman.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "leadsman.labels" -}}
helm.sh/chart: {{ include "leadsman.chart" . }}
{{ include "leadsman.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: leadsman
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* By these the NetworkPolicy knows the pod of `helm test`; the Service does not take it for one of its own. */}}
{{- define "leadsman.testLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: test
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

{{- define "leadsman.scheme" -}}
{{- if .Values.tls.existingSecret }}https{{ else }}http{{ end }}
{{- end }}

{{/* The address of the Service, by the name that the certificate is made out to. */}}
{{- define "leadsman.url" -}}
{{- printf "%s://%s:%d" (include "leadsman.scheme" .) (include "leadsman.fullname" .) (int .Values.service.port) }}
{{- end }}

{{/* The same for those who are in other namespaces, as in links. */}}
{{- define "leadsman.serviceUrl" -}}
{{- printf "%s://%s.%s.svc:%d/" (include "leadsman.scheme" .) (include "leadsman.fullname" .) .Release.Namespace (int .Values.service.port) }}
{{- end }}

{{/* The file of the authority that the listener's certificate comes from; empty for those of the system. */}}
{{- define "leadsman.caFile" -}}
{{- if and .Values.tls.existingSecret .Values.tls.caKey }}
{{- printf "/etc/leadsman/secrets/tls/%s" .Values.tls.caKey }}
{{- end }}
{{- end }}

{{/* How Prometheus' operator scrapes; the Secret must be where the monitor is. */}}
{{- define "leadsman.monitorTls" -}}
scheme: https
tlsConfig:
  serverName: {{ include "leadsman.fullname" . | quote }}
  {{- with .Values.tls.caKey }}
  ca:
    secret:
      name: {{ $.Values.tls.existingSecret | quote }}
      key: {{ . | quote }}
  {{- end }}
{{- end }}

{{/* What following releases takes: what `leadsman rbac` prints for the mode observe. */}}
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

{{/* What Leadsman itself needs on top of it: all that going back takes, or to act as the account that may do it. */}}
{{- define "leadsman.ownTurnBackRules" -}}
{{- if .Values.kubernetes.impersonate -}}
# Helm's records, to put them right.
- apiGroups: [""]
  resources: [{{ if eq .Values.kubernetes.driver "configmap" }}configmaps{{ else }}secrets{{ end }}]
  verbs: [get, list, update]
# Pods of a bad revision that keep a StatefulSet from going back.
- apiGroups: [""]
  resources: [pods]
  verbs: [delete]
# helm acts as this account.
- apiGroups: [""]
  resources: [serviceaccounts]
  resourceNames: [{{ .Values.kubernetes.impersonate | quote }}]
  verbs: [impersonate]
{{- else }}
{{- include "leadsman.turnBackRules" . }}
{{- end }}
{{- end }}

{{/* What going back takes on top of it. `leadsman rbac` looks which kinds the releases contain; here they are values. */}}
{{- define "leadsman.turnBackRules" -}}
# Helm's records.
- apiGroups: [""]
  resources: [{{ if eq .Values.kubernetes.driver "configmap" }}configmaps{{ else }}secrets{{ end }}]
  verbs: [get, list, create, update]
{{- if not .Values.kubernetes.impersonate }}
# Pods of a bad revision that keep a StatefulSet from going back.
- apiGroups: [""]
  resources: [pods]
  verbs: [delete]
{{- end }}
{{- range .Values.rbac.kinds }}
- apiGroups: {{ toJson .apiGroups }}
  resources: {{ toJson .resources }}
  verbs: [get, create, patch, delete]
{{- end }}
{{- with .Values.rbac.hookKinds }}
# Hooks of a rollback: helm waits until they are done.
{{- range . }}
- apiGroups: {{ toJson .apiGroups }}
  resources: {{ toJson .resources }}
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- end }}
{{- with .Values.rbac.extraRules }}
{{ toYaml . }}
{{- end }}
{{- end }}
