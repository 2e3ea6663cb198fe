{{- define "plumbline.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 48 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "plumbline.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "plumbline.labels" -}}
{{ include "plumbline.selectorLabels" . }}
app.kubernetes.io/part-of: plumbline
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "plumbline.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (include "plumbline.fullname" .) }}
{{- end -}}

{{- define "plumbline.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* The metrics Service; Prometheus takes its name for the label `job`. */ -}}
{{- define "plumbline.metricsName" -}}
{{ include "plumbline.fullname" . }}-metrics
{{- end -}}

{{- /* Settings of the operator, as its --settings file. Left out is what has the operator's own default. */ -}}
{{- define "plumbline.settings" -}}
{{- $pods := deepCopy .Values.stagePods -}}
{{- $_ := set $pods "image" ($pods.image | default (printf "plumbline:%s" .Chart.AppVersion)) -}}
{{- if not $pods.claim -}}{{- $_ := unset $pods "claim" -}}{{- end -}}
{{- dict
      "stagePods" $pods
      "patience" .Values.patience
      "readableSecrets" .Values.readableSecrets
      "progressInterval" .Values.progressInterval
      "auditInterval" .Values.auditInterval
    | toPrettyJson -}}
{{- end -}}
