// Which page an address shows: the one table of addresses.
import type { Component } from 'svelte'
import Audit from './pages/Audit.svelte'
import Device from './pages/Device.svelte'
import Devices from './pages/Devices.svelte'
import Enrol from './pages/Enrol.svelte'
import Missing from './pages/Missing.svelte'
import Model from './pages/Model.svelte'
import Models from './pages/Models.svelte'
import NewRollout from './pages/NewRollout.svelte'
import Overview from './pages/Overview.svelte'
import Playground from './pages/Playground.svelte'
import Rollout from './pages/Rollout.svelte'
import Rollouts from './pages/Rollouts.svelte'
import Settings from './pages/Settings.svelte'

interface Entry {
  path: string
  title: string
  /** The action that the role must be allowed, or the page is not offered. */
  needs?: string
}

/** The pages in the navigation, in order. */
export const PAGES: readonly Entry[] = [
  { path: '/', title: 'Overview' },
  { path: '/devices', title: 'Devices' },
  { path: '/models', title: 'Models and builds' },
  { path: '/rollouts', title: 'Rollouts' },
  { path: '/playground', title: 'Playground', needs: 'models.infer' },
  { path: '/enrol', title: 'Enrol', needs: 'devices.enrol' },
  { path: '/audit', title: 'Audit', needs: 'audit.read' },
  { path: '/settings', title: 'Settings' },
]

interface Shown {
  component: Component
  title: string
  /** The path of the entry in the navigation that is marked. */
  section: string
}

/** The page for the parts of a path: ["devices", "d-1"]. */
export function page(parts: readonly string[]): Shown {
  const [first = '', second] = parts
  const section = `/${first}`
  if (parts.length > 2) return { component: Missing, title: 'Not found', section: '' }
  if (second !== undefined) {
    if (first === 'devices') return { component: Device, title: second, section }
    if (first === 'models') return { component: Model, title: second, section }
    if (first === 'rollouts' && second === 'new') return { component: NewRollout, title: 'New rollout', section }
    if (first === 'rollouts') return { component: Rollout, title: second, section }
    return { component: Missing, title: 'Not found', section: '' }
  }
  const components: Record<string, Component> = {
    '/': Overview,
    '/devices': Devices,
    '/models': Models,
    '/rollouts': Rollouts,
    '/playground': Playground,
    '/enrol': Enrol,
    '/audit': Audit,
    '/settings': Settings,
  }
  const component = components[section]
  if (component === undefined) return { component: Missing, title: 'Not found', section: '' }
  return { component, title: PAGES.find((entry) => entry.path === section)?.title ?? '', section }
}
