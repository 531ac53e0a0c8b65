{{- define "mykadoo.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "mykadoo.annotations" -}}
{{- range $key, $value := . }}
sim.leadsman.io/{{ $key }}: {{ if kindIs "string" $value }}{{ $value | quote }}{{ else }}{{ toJson $value | quote }}{{ end }}
{{- end }}
{{- end }}

{{- define "mykadoo.container" -}}
- name: {{ .name }}
  image: {{ .image }}
  {{- with .env }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - name: http
      containerPort: 8080
  readinessProbe:
    httpGet:
      path: {{ .readiness }}
      port: http
    periodSeconds: 1
{{- end }}
