{{- /* What the operator may do where runs live: what it uses, and what it hands on to stage Pods (RBAC lets nobody hand on
       more than they hold). tests/operator/test_least_privilege.py runs it under exactly these. */ -}}
{{- define "plumbline.rules" -}}
- apiGroups: [plumbline.dev]
  resources: [alignmentruns]
  verbs: [get, list, watch, delete]
- apiGroups: [plumbline.dev]
  resources: [alignmentruns/status]
  verbs: [patch]
# Children.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [ray.io]
  resources: [rayjobs, rayservices]
  verbs: [get, list, watch, create, patch, delete]
# Also for the Role of a run's Pods, which may get and patch the run's own ConfigMap.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, create, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, create, patch]
{{- if .Values.stagePods.networkPolicy }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch]
{{- end }}
# Why a stage waits.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list, watch]
- apiGroups: [kueue.x-k8s.io]
  resources: [localqueues]
  verbs: [get]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
{{- with .Values.readableSecrets }}
- apiGroups: [""]
  resources: [secrets]
  resourceNames: {{ toJson . }}
  verbs: [get]
{{- end }}
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}
