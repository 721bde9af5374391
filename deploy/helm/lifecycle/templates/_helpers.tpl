{{/* An image by digest where it is known, else by tag. */}}
{{- define "lifecycle.image" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}

{{/* The images of a release, as a list. */}}
{{- define "lifecycle.images" -}}
{{- $images := list (ternary .Values.multinode.image .Values.image (gt (int .Values.multinode.size) 1)) .Values.gateway.image }}
{{- if eq .Values.model.source "objectStore" }}
{{- $images = append $images .Values.model.objectStore.image }}
{{- end }}
{{- toJson $images }}
{{- end }}

{{- define "lifecycle.selector" -}}
app.kubernetes.io/name: lifecycle
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "lifecycle.labels" -}}
{{ include "lifecycle.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
nemo-lifecycle.io/identity: {{ .Values.model.identity | trunc 63 | quote }}
{{- end }}

{{/* Where the gateway finishes, then Triton, then a pod is killed. */}}
{{- define "lifecycle.grace" -}}
{{ add 60 (int .Values.gateway.settings.limits.drain_s) }}
{{- end }}

{{- define "lifecycle.gatewaySettings" -}}
{{- $at := dict "host" "0.0.0.0" "metrics_host" "0.0.0.0" "http_port" 8000 "grpc_port" 8001 "metrics_port" 8002 "keys_file" "/etc/lifecycle/keys/keys" }}
{{- if .Values.gateway.tlsSecret }}
{{- $at = merge $at (dict "tls_certificate" "/etc/lifecycle/tls/tls.crt" "tls_key" "/etc/lifecycle/tls/tls.key") }}
{{- end }}
{{- $at = merge $at (dict "version" (dict "identity" .Values.model.identity "address" "127.0.0.1:18000" "metrics" "127.0.0.1:18002" "models" .Values.model.routes)) }}
{{- merge $at .Values.gateway.settings | toPrettyJson }}
{{- end }}

{{- define "lifecycle.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.user }}
runAsGroup: {{ .Values.user }}
fsGroup: {{ .Values.user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "lifecycle.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
capabilities: {drop: [ALL]}
{{- end }}

{{/* A generation through the gateway: what a client would see, whoever's container asks. */}}
{{- define "lifecycle.ready" -}}
httpGet: {path: /ready, port: 8000, scheme: {{ ternary "HTTPS" "HTTP" (ne .Values.gateway.tlsSecret "") }}}
timeoutSeconds: 5
{{- end }}

{{- define "lifecycle.metadata" -}}
labels:
  {{- include "lifecycle.labels" .root | nindent 2 }}
  nemo-lifecycle.io/role: {{ .role }}
annotations:
  checksum/settings: {{ include (print .root.Template.BasePath "/configmap.yaml") .root | sha256sum }}
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Triton's container: alone, or one of a group (leader, worker). */}}
{{- define "lifecycle.triton" -}}
{{- $values := .root.Values -}}
name: triton
image: {{ include "lifecycle.image" (ternary $values.image $values.multinode.image (eq .mode $values.triton.mode)) }}
imagePullPolicy: IfNotPresent
command: [/bin/bash, /etc/lifecycle/triton.sh, {{ .mode }}]
env:
  - {name: IDENTITY, value: {{ $values.model.identity | quote }}}
  - {name: HOME, value: /tmp}
  - {name: PYTHONDONTWRITEBYTECODE, value: "1"}
  - {name: HF_HUB_OFFLINE, value: "1"}
  {{- if ne .mode $values.triton.mode }}
  - {name: GPUS, value: {{ $values.gpus.perPod | quote }}}
  - {name: SSH_PORT, value: {{ $values.multinode.sshPort | quote }}}
  - {name: SSH_KEYS, value: /etc/lifecycle/ssh}
  {{- end }}
  {{- range $name, $value := $values.triton.environment }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
  {{- end }}
resources:
  requests:
    cpu: {{ $values.triton.resources.cpu | quote }}
    memory: {{ $values.triton.resources.memory | quote }}
  limits:
    memory: {{ $values.triton.resources.memory | quote }}
    {{ $values.gpus.resource }}: {{ $values.gpus.perPod | quote }}
    {{- range $name, $value := $values.multinode.resources }}
    {{ $name }}: {{ $value | quote }}
    {{- end }}
securityContext:
  {{- include "lifecycle.security" .root | nindent 2 }}
volumeMounts:
  - {name: models, mountPath: /models, readOnly: true{{ if and (eq $values.model.source "claim") $values.model.claim.path }}, subPath: {{ $values.model.claim.path | quote }}{{ end }}}
  - {name: settings, mountPath: /etc/lifecycle/triton.sh, subPath: triton.sh, readOnly: true}
  - {name: triton-scratch, mountPath: /tmp}
  - {name: shared-memory, mountPath: /dev/shm}
  {{- if ne .mode $values.triton.mode }}
  - {name: ssh, mountPath: /etc/lifecycle/ssh, readOnly: true}
  {{- end }}
{{- end }}

{{/* What every pod has beside its containers. */}}
{{- define "lifecycle.pod" -}}
{{- $values := .root.Values -}}
serviceAccountName: {{ .root.Release.Name }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "lifecycle.grace" .root }}
securityContext:
  {{- include "lifecycle.podSecurity" .root | nindent 2 }}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - {name: {{ . }}}
  {{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if eq $values.model.source "objectStore" }}
initContainers:
  - name: fetch
    image: {{ include "lifecycle.image" $values.model.objectStore.image }}
    imagePullPolicy: IfNotPresent
    command: {{ toJson $values.model.objectStore.command }}
    env:
      - {name: SOURCE, value: {{ $values.model.objectStore.uri | quote }}}
      - {name: HOME, value: /tmp}
      {{- range $name, $value := $values.model.objectStore.environment }}
      - {name: {{ $name }}, value: {{ $value | quote }}}
      {{- end }}
    {{- with $values.model.objectStore.secret }}
    envFrom:
      - secretRef: {name: {{ . }}}
    {{- end }}
    resources:
      requests: {cpu: "1", memory: 1Gi}
      limits: {memory: 4Gi}
    securityContext:
      {{- include "lifecycle.security" .root | nindent 6 }}
    volumeMounts:
      - {name: models, mountPath: /models}
      - {name: fetch-scratch, mountPath: /tmp}
{{- end }}
volumes:
  {{- if eq $values.model.source "claim" }}
  - name: models
    persistentVolumeClaim: {claimName: {{ $values.model.claim.name | quote }}, readOnly: true}
  {{- else }}
  - name: models
    emptyDir: {sizeLimit: {{ $values.model.objectStore.size }}}
  - name: fetch-scratch
    emptyDir: {sizeLimit: 1Gi}
  {{- end }}
  - name: settings
    configMap: {name: {{ .root.Release.Name }}}
  - name: triton-scratch
    emptyDir: {sizeLimit: {{ $values.triton.scratch }}}
  - name: shared-memory
    emptyDir: {medium: Memory, sizeLimit: {{ $values.triton.sharedMemory }}}
  {{- if gt (int $values.multinode.size) 1 }}
  - name: ssh
    secret: {secretName: {{ $values.multinode.sshSecret }}, defaultMode: 0440}
  {{- end }}
  {{- if eq .role "server" }}
  - name: gateway-scratch
    emptyDir: {sizeLimit: 64Mi}
  - name: keys
    secret: {secretName: {{ $values.gateway.keysSecret }}, defaultMode: 0440}
  {{- with $values.gateway.tlsSecret }}
  - name: tls
    secret: {secretName: {{ . }}, defaultMode: 0440}
  {{- end }}
  {{- end }}
{{- end }}

{{/* The pod that clients reach: Triton on loopback, and the gateway. */}}
{{- define "lifecycle.server" -}}
{{- $values := .root.Values -}}
metadata:
  {{- include "lifecycle.metadata" (dict "root" .root "role" "server") | nindent 2 }}
spec:
  {{- include "lifecycle.pod" (dict "root" .root "role" "server") | nindent 2 }}
  containers:
    - {{- include "lifecycle.triton" . | nindent 6 }}
      startupProbe:
        {{- include "lifecycle.ready" .root | nindent 8 }}
        periodSeconds: 10
        failureThreshold: {{ divf $values.startSeconds 10 | ceil }}
      livenessProbe:
        {{- include "lifecycle.ready" .root | nindent 8 }}
        periodSeconds: 10
        failureThreshold: {{ divf $values.deadSeconds 10 | ceil }}
        terminationGracePeriodSeconds: 10  # nothing is under way on a model that does not answer
      lifecycle:
        preStop:
          exec: {command: [/bin/bash, /etc/lifecycle/triton.sh, after-gateway, 127.0.0.1, "8000"]}
    - name: gateway
      image: {{ include "lifecycle.image" $values.gateway.image }}
      imagePullPolicy: IfNotPresent
      args: [/etc/lifecycle/gateway.json]
      ports:
        - {name: http, containerPort: 8000}
        - {name: grpc, containerPort: 8001}
        - {name: metrics, containerPort: 8002}
      resources:
        requests:
          cpu: {{ $values.gateway.resources.cpu | quote }}
          memory: {{ $values.gateway.resources.memory | quote }}
        limits:
          memory: {{ $values.gateway.resources.memory | quote }}
      securityContext:
        {{- include "lifecycle.security" .root | nindent 8 }}
      startupProbe:
        {{- include "lifecycle.ready" .root | nindent 8 }}
        periodSeconds: 10
        failureThreshold: {{ divf $values.startSeconds 10 | ceil }}
      readinessProbe:
        {{- include "lifecycle.ready" .root | nindent 8 }}
        periodSeconds: 5
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /health, port: http, scheme: {{ ternary "HTTPS" "HTTP" (ne $values.gateway.tlsSecret "") }}}
        timeoutSeconds: 5
        periodSeconds: 10
        failureThreshold: 6
      lifecycle:
        preStop:
          exec: {command: [sleep, "10"]}  # until nobody sends new requests here any more
      volumeMounts:
        - {name: settings, mountPath: /etc/lifecycle/gateway.json, subPath: gateway.json, readOnly: true}
        - {name: keys, mountPath: /etc/lifecycle/keys, readOnly: true}
        - {name: gateway-scratch, mountPath: /tmp}
        {{- if $values.gateway.tlsSecret }}
        - {name: tls, mountPath: /etc/lifecycle/tls, readOnly: true}
        {{- end }}
{{- end }}
