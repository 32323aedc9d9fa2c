// Live queries: an address of the API whose answer is sent again, as differences, whenever it changes.
//
// One WebSocket carries all of them. While it cannot be had (a proxy that does not pass it, a controller that is being
// restarted) the same addresses are asked every few seconds, and the page says which of the two it is.
import { ApiError, call, whenUnauthenticated } from './api'
import { clock } from './clock.svelte'
import { apply, type Operation } from './patch'

const FIRST_WAIT = 300
const LONGEST_WAIT = 10_000
const POLL_EVERY = 2000

type Told =
  | { now: number }
  | { id: number; value: unknown }
  | { id: number; patch: Operation[] }
  | { id: number; status: number; code: string; error: string }

/** One watched address. While a new address is on its way the old answer stays, so that nothing jumps. */
export class Query<T> {
  value = $state.raw<T | undefined>(undefined)
  error = $state.raw<ApiError | null>(null)
  loading = $state(true)

  /** @internal */
  take(value: unknown): void {
    this.value = value as T
    this.error = null
    this.loading = false
  }

  /** Show an error in place of what is on its way. */
  fail(error: ApiError): void {
    this.error = error
    this.loading = false
  }
}

interface Watch {
  path: string
  query: Query<unknown>
}

class Live {
  /** connecting: not yet; live: changes arrive by themselves; polling: asked every two seconds; offline: nothing. */
  state = $state<'connecting' | 'live' | 'polling' | 'offline'>('connecting')
  /** When the last answer came, by this machine's clock (ms). */
  heard = $state(0)
  private watches = new Map<number, Watch>()
  private next = 1
  private socket: WebSocket | null = null
  private failures = 0
  private timer: ReturnType<typeof setTimeout> | undefined
  private poller: ReturnType<typeof setInterval> | undefined
  private wanted = false

  start(): void {
    if (this.wanted) return
    this.wanted = true
    this.failures = 0
    this.connect()
  }

  stop(): void {
    this.wanted = false
    clearTimeout(this.timer)
    clearInterval(this.poller)
    this.poller = undefined
    this.socket?.close()
    this.socket = null
    this.state = 'connecting'
  }

  watch(path: string, query: Query<unknown>): () => void {
    const id = this.next++
    this.watches.set(id, { path, query })
    query.loading = true
    if (this.socket?.readyState === WebSocket.OPEN) this.say({ watch: id, path })
    else if (this.state !== 'connecting') void this.ask(id)
    return () => {
      this.watches.delete(id)
      if (this.socket?.readyState === WebSocket.OPEN) this.say({ unwatch: id })
    }
  }

  private connect(): void {
    clearTimeout(this.timer)
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws'
    const socket = new WebSocket(`${scheme}://${location.host}/api/v1/live`)
    this.socket = socket
    socket.onopen = () => {
      this.failures = 0
      this.state = 'live'
      clearInterval(this.poller)
      this.poller = undefined
      for (const [id, { path }] of this.watches) this.say({ watch: id, path })
    }
    socket.onmessage = (event) => this.hear(JSON.parse(event.data as string) as Told)
    socket.onclose = () => {
      if (this.socket !== socket || !this.wanted) return
      this.socket = null
      this.lost()
    }
  }

  private lost(): void {
    const ceiling = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.failures++)
    this.timer = setTimeout(() => this.connect(), ceiling * (0.5 + Math.random() / 2))
    if (this.poller === undefined) {
      this.state = 'offline'
      void this.poll()
      this.poller = setInterval(() => void this.poll(), POLL_EVERY)
    }
  }

  private async poll(): Promise<void> {
    await Promise.all([...this.watches.keys()].map((id) => this.ask(id)))
  }

  private async ask(id: number): Promise<void> {
    const watch = this.watches.get(id)
    if (watch === undefined) return
    try {
      const value = await call<unknown>('GET', watch.path)
      if (!this.watches.has(id)) return
      watch.query.take(value)
      this.heard = Date.now()
      if (this.state === 'offline') this.state = 'polling'
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      if (error.status === 0 || error.status >= 500) {
        if (this.state !== 'live') this.state = 'offline'
      } else if (this.watches.has(id)) watch.query.fail(error)
    }
  }

  private hear(told: Told): void {
    this.heard = Date.now()
    if ('now' in told) return clock.set(told.now)
    if ('status' in told && told.status === 401) return unauthenticated()
    const query = this.watches.get(told.id)?.query
    if (query === undefined) return
    if ('value' in told) query.take(told.value)
    else if ('patch' in told) query.take(apply(query.value, told.patch))
    else query.fail(new ApiError(told.status, told.code, told.error))
  }

  private say(message: object): void {
    this.socket?.send(JSON.stringify(message))
  }
}

export const live = new Live()

let unauthenticated = (): void => {}
/** What happens when the server says that the session is over. */
export function whenSessionEnds(callback: () => void): void {
  unauthenticated = callback
  whenUnauthenticated(callback)
}

/** Watch an address for as long as the component lives; null watches nothing. Call while a component is made. */
export function watch<T>(path: () => string | null): Query<T> {
  const query = new Query<T>()
  $effect(() => {
    const address = path()
    if (address === null) return
    return live.watch(address, query as Query<unknown>)
  })
  return query
}
