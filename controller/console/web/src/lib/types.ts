// What the API answers, as far as the console reads it. Times: seconds since 1970; sizes: bytes.

export interface WhoAmI {
  tenant: string
  role: string
  id: string
  name: string
  actions: string[]
}

export type Presence = 'online' | 'late' | 'lost'

export interface ReportedItem {
  component: string
  generation: number
  build: string | null
  state: string
  since: number
}

export interface Reported {
  at: number
  epoch: number
  number: number
  items: ReportedItem[]
  serving: string
  notices?: string[]
}

/** The newest window of a device, as far as it measured. */
export interface Vitals {
  at: number
  requests_per_s: number | null
  errors_per_s: number | null
  p50_ms: number | null
  p95_ms: number | null
  queued: number | null
  cpu: number | null
  load: number | null
  memory_available_bytes: number | null
  disk_free_bytes: number | null
  temperature_celsius: number | null
  throttling: string[] | null
}

export interface DeviceRow {
  id: string
  name: string
  tags: string[]
  enrolled: number
  revoked: number | null
  online: boolean
  last_seen: number | null
  state: Presence
  boot: string | null
  agent_version: string | null
  profile: string | null
  reported: Reported | null
  vitals: Vitals | null
}

export interface Device extends DeviceRow {
  state_reason: string
  certificate_expires: number | null
  facts: {
    at: number
    profile: string
    title: string
    confidence: number
    evidence: string[]
    facts: Record<string, unknown>
    runtimes: Record<string, unknown>[]
  } | null
}

export interface DeviceList {
  devices: DeviceRow[]
  next: string | null
  total: number
}

export interface Attention {
  severity: 'bad' | 'warn'
  kind: string
  text: string
  href: string
  since: number | null
}

export interface Overview {
  devices: { total: number; online: number; late: number; lost: number }
  traffic: {
    reporting: number
    requests_per_s: number | null
    errors_per_s: number | null
    p50_ms: number | null
    p95_ms: number | null
  }
  runs: { component: string; build: string | null; version: number | null; precision: string | null; devices: number; ready: number }[]
  rollouts: RolloutRow[]
  attention: Attention[]
  attention_total: number
}

export interface Point {
  start: number
  count: number
  mean: number | null
  minimum: number | null
  maximum: number | null
  p50: number | null
  p95: number | null
  p99: number | null
}

export interface SeriesAnswer {
  name: string
  since: number
  until: number
  series: { labels: Record<string, string>; step: number; points: Point[] }[]
}

export interface Figures {
  accuracy: number | null
  accuracy_low: number | null
  accuracy_high: number | null
  samples: number
  p50_ms: number
  p95_ms: number
  p50_ms_batch8: number | null
  peak_memory_bytes: number
  size_bytes: number
  measured_on: string
}

export interface Build {
  id: string
  model: string
  version: number
  job: string
  precision: string
  target: { profile: string; arch: string[]; runtime: string; min_runtime: string }
  figures: Partial<Figures>
  verdict: 'published' | 'accepted' | 'refused'
  reasons: string[]
  manifest_sha256: string | null
  created: number
}

export interface ModelRow {
  name: string
  versions: number
  created: number
}

export interface ModelVersion {
  version: number
  source_sha256: string
  data_sha256: string
  created: number
  jobs: string[]
}

export interface Job {
  id: string
  model: string
  version: number
  target: { profile: string; arch: string[]; optimization: string }
  state: 'waiting' | 'running' | 'done' | 'failed'
  attempt: number
  progress: string
  error: string
  created: number
  finished: number | null
}

export interface Release {
  id: string
  name: string
  models: Record<string, number>
  created: number
}

export interface RolloutRow {
  id: string
  release: string
  release_name: string
  models: Record<string, number>
  state: string
  wanted: string
  stage: number
  reasons: string[]
  executions: Record<string, number>
  created: number
  updated: number
  concluded: number | null
}

export type Share = 'rest' | { count?: number; percent?: number; rest?: boolean }

export interface Rollout extends RolloutRow {
  selector: { devices?: string[]; tags?: string[]; profiles?: string[] }
  policy: {
    stages: Share[]
    gate: {
      max_failed_percent: number
      max_failed: number | null
      min_executed: number
      quorum_percent: number
      on_failure: string
    }
    soak: number
    deadline: number
    offline: { skip_after: number }
    max_in_flight: number
    continuous: boolean
    probation: number
  }
  stages: {
    number: number
    state: string
    started: number | null
    finished: number | null
    devices: number
    carried: number
    reasons: string[]
  }[]
  stages_planned: number
  gate: { stage: number; verdict: string; reasons: string[]; devices: Record<string, number> } | null
}

export interface Fault {
  phase: string
  code: string
  message: string
  log_tail: string
}

export interface Execution {
  id: string
  rollout: string
  stage: number | null
  reverting: boolean
  device: string
  device_name: string
  component: string
  generation: number
  build: string | null
  why: string[]
  state: string
  fault: Fault | null
  figures: Record<string, number> | null
  created: number
  updated: number
}

export interface ExecutionEvent {
  stream: string
  sequence: number
  at: number
  received: number
  state: string
  origin: string
  detail: string
  fault: Fault | null
}

export interface DryRun {
  stages: { number: number; devices: number }[]
  gets: { device: string; name: string; stage: number; online: boolean; builds: Record<string, { build: string; why: string[] }> }[]
  gets_total: number
  left_out: { device: string; name: string; why: string[] }[]
  left_out_total: number
  not_in_any_stage: number
  warnings: string[]
}

export interface AuditRow {
  id: number
  at: number
  actor: string
  action: string
  thing: string
  reason: string
  body: Record<string, unknown>
  number: number | null
  hash: string | null
}

export interface Token {
  id: string
  name: string
  role: string
  created: number
  expires: number | null
  revoked: number | null
}

export interface Command {
  id: string
  device: string
  kind: string
  state: string
  created: number
  expires: number
  answered: number | null
  outcome: string | null
  detail: string | null
  text?: string | null
}
