{{- define "usfmae.name" -}}
{{ printf "%s-%s" .Release.Name .Values.role | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- define "usfmae.labels" -}}
app.kubernetes.io/name: usfmae
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.role }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
{{- define "usfmae.selector" -}}
app.kubernetes.io/name: usfmae
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.role }}
{{- end }}
