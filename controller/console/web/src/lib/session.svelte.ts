// Who is logged in. The cookie itself is out of reach of scripts: the server is asked.
import { ApiError, call } from './api'
import { live, whenSessionEnds } from './live.svelte'
import type { WhoAmI } from './types'

class Session {
  who = $state.raw<WhoAmI | null>(null)
  /** asking: not yet known; in; out: log in; unreachable: the controller does not answer. */
  state = $state<'asking' | 'in' | 'out' | 'unreachable'>('asking')
  /** Why there is no session: the server's own words. */
  reason = $state('')

  async ask(): Promise<void> {
    try {
      this.who = await call<WhoAmI>('GET', '/api/v1/whoami')
      this.state = 'in'
      this.reason = ''
      live.start()
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      if (error.status === 401) this.end(error.code === 'no_credential' ? '' : error.message)
      else {
        this.state = 'unreachable'
        this.reason = error.message
        setTimeout(() => void this.ask(), 2000)
      }
    }
  }

  async logIn(token: string): Promise<void> {
    await call('POST', '/api/v1/sessions', { token })
    await this.ask()
  }

  async logOut(): Promise<void> {
    await call('POST', '/logout')
    this.end('')
  }

  end(reason: string): void {
    live.stop()
    this.who = null
    this.state = 'out'
    this.reason = reason
  }

  /** Whether the role may do this: what may not be done is not offered. */
  may(action: string): boolean {
    return this.who?.actions.includes(action) ?? false
  }
}

export const session = new Session()
whenSessionEnds(() => {
  if (session.state === 'in') session.end('Your session is over. Log in again.')
})
