// Builds the console into controller/console/static. Everything it needs is in there: nothing is loaded from elsewhere,
// no script or style is inline, so that the strictest Content-Security-Policy holds.
import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig } from 'vite'

export default defineConfig({
  plugins: [svelte()],
  build: {
    outDir: '../static',
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: 'es2023',
  },
})
