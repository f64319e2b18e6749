{{- define "kunlun.fullname" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "kunlun.pool" -}}
{{- .Values.pool | default (include "kunlun.fullname" .) }}
{{- end }}

{{/* Of one release: what its Deployment owns. */}}
{{- define "kunlun.selector" -}}
app.kubernetes.io/name: kunlun
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Of all releases that share traffic: what the Service finds. */}}
{{- define "kunlun.poolSelector" -}}
app.kubernetes.io/name: kunlun
app.kubernetes.io/part-of: {{ include "kunlun.pool" . }}
{{- end }}

{{- define "kunlun.labels" -}}
{{ include "kunlun.selector" . }}
app.kubernetes.io/part-of: {{ include "kunlun.pool" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "kunlun.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "kunlun.fullname" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "kunlun.secret" -}}
{{- if .Values.secret.create }}{{ include "kunlun.fullname" . }}{{ else }}{{ .Values.secret.name }}{{ end }}
{{- end }}

{{- define "kunlun.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}
{{- else }}{{ .repository }}:{{ .tag | default (printf "%s-%s" $.Chart.AppVersion .target) }}{{ end }}
{{- end }}
{{- end }}

{{/* server.yaml: the chart's keys, with `config` over them. What the pod depends on besides has a value of its own. */}}
{{- define "kunlun.config" -}}
{{- range $key, $value := dict "port" "service.port" "metrics_port" "service.metricsPort" "tls" "tls.secretName" -}}
{{- if hasKey $.Values.config $key -}}
{{- fail (printf "config.%s: expected %s in its place, which the pod follows, found %v" $key $value (get $.Values.config $key)) -}}
{{- end -}}
{{- end -}}
{{- $own := dict "repository" "/models" "engine_cache" "/var/lib/kunlun/engines" "host" "0.0.0.0" -}}
{{- $_ := set $own "port" (.Values.service.port | int) -}}
{{- $_ := set $own "metrics_port" (.Values.service.metricsPort | int) -}}
{{- $_ := set $own "receipt_key_file" "/etc/kunlun/secret/receipt.key" -}}
{{- with .Values.model.name }}{{ $_ := set $own "model" . }}{{ end -}}
{{- with .Values.model.version }}{{ $_ := set $own "version" . }}{{ end -}}
{{- if .Values.tls.secretName -}}
{{- $tls := dict "certificate" "/etc/kunlun/tls/tls.crt" "key" "/etc/kunlun/tls/tls.key" -}}
{{- if .Values.tls.clientCa }}{{ $_ := set $tls "client_ca" "/etc/kunlun/tls/ca.crt" }}{{ end -}}
{{- $_ := set $own "tls" $tls -}}
{{- end -}}
{{- $merged := mergeOverwrite $own (deepCopy .Values.config) -}}
{{- if eq ($merged.front_end | default "grpcio") "native" -}}
{{- $_ := unset $merged "max_connection_age_s" -}}{{/* which it does not have */}}
{{- end -}}
{{- toYaml $merged -}}
{{- end }}

{{/* Where the certificates of probes are: those of the server, or a Secret of their own. */}}
{{- define "kunlun.probeTls" -}}
/etc/kunlun/{{ if .Values.tls.probeSecretName }}probe{{ else }}tls{{ end }}
{{- end }}

{{/* How a probe asks: the kubelet itself, or, behind TLS, a command in the pod. */}}
{{- define "kunlun.probe" -}}
{{- if .Values.tls.secretName -}}
exec:
  command:
    - kunlun
    - health
    - --server=127.0.0.1:{{ .Values.service.port }}
    - --tls-ca={{ include "kunlun.probeTls" . }}/ca.crt
    - --tls-name={{ .Values.tls.name }}
    {{- if .Values.tls.clientCa }}
    - --tls-certificate={{ include "kunlun.probeTls" . }}/tls.crt
    - --tls-key={{ include "kunlun.probeTls" . }}/tls.key
    {{- end }}
{{- else -}}
grpc: {port: {{ .Values.service.port }}}
{{- end }}
{{- end }}
