"""How the first page looks. Joined into the page's CSS by the tab that needs it."""

CSS = """
#home-hero .hero { display: grid; grid-template-columns: minmax(0, 1fr) minmax(260px, 340px); gap: 32px;
  align-items: center; padding: 12px 8px 4px; }
#home-hero h2 { font-size: 2rem; line-height: 1.25; margin: 0 0 12px; font-weight: 700; }
#home-hero p.how { font-size: 1.1rem; line-height: 1.75; margin: 0 0 22px; max-width: 46em; }
#home-hero nav { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 12px; }
#home-hero nav a { display: block; padding: 16px 18px; border-radius: 10px; text-decoration: none; background: #9d2b1d;
  color: #fff; border: 1px solid transparent; }
#home-hero nav a + a { background: var(--background-fill-secondary); color: var(--body-text-color);
  border-color: var(--border-color-primary); }
#home-hero nav a:hover { background: #7f2318; }
#home-hero nav a + a:hover { border-color: var(--primary-500); background: var(--background-fill-primary); }
#home-hero nav b { display: block; font-size: 1.25rem; color: inherit; }
#home-hero nav a, #home-hero nav span { text-align: start; color: inherit; }
#home-hero nav a:first-child { color: #fff; }
#home-hero .stage { position: relative; aspect-ratio: 1; width: min(100%, 320px); margin: 0 auto; }
#home-hero .curtain { position: absolute; inset: 4% 0 0; border-radius: 50% 50% 12px 12px;
  background: repeating-linear-gradient(90deg, #7f2318 0 22px, #9d2b1d 22px 44px); }
#home-hero .faces { position: absolute; inset: 15% 11% 7%; }
#home-hero .faces img { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0; margin: 0;
  animation: change-face var(--turn) infinite; }
#home-hero .faces img:first-child { opacity: 1; }
@keyframes change-face { 0% { opacity: 0; transform: scaleX(.2); } 4%, 20% { opacity: 1; transform: none; }
  24%, 100% { opacity: 0; } }
#home-hero .faces img:first-child { animation-name: base-face; }
@keyframes base-face { 0%, 100% { opacity: 1; } }
@media (prefers-reduced-motion: reduce) { #home-hero .faces img { animation: none; } }
#home-faces h2, #home-api h2 { font-size: 1.25rem; font-weight: 700; margin: 8px 8px 10px; }
#home-api h2 { margin-inline: 0; }
#home-faces .empty { margin: 0 8px; }
#home-faces .cards { list-style: none; margin: 0; padding: 0 8px; display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
#home-faces .card { display: flex; gap: 14px; padding: 14px; border-radius: 10px; margin: 0;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary); }
#home-faces .card > div { min-width: 0; overflow-wrap: anywhere; }
#home-faces .portrait { flex: none; width: 72px; height: 72px; margin: 0; border-radius: 50%; display: grid;
  place-items: center; color: #fff; font-size: 2rem; }
#home-faces h3 { margin: 0; font-size: 1.05rem; font-weight: 700; }
#home-faces code { font-size: .85em; color: var(--body-text-color-subdued); background: none; border: 0; padding: 0; }
#home-faces .card p { margin: 4px 0 10px; line-height: 1.5; }
#home-faces a { color: var(--primary-700); text-decoration: underline; margin-right: 12px; }
.dark #home-faces a { color: var(--primary-300); }
#home-faces a.button { display: inline-block; padding: 4px 14px; border-radius: 6px; background: #9d2b1d; color: #fff;
  text-decoration: none; }
#home-api pre, #home-api pre code { white-space: pre-wrap; overflow-wrap: anywhere; }
#home-api { padding: 0 20px 12px; }
@media (max-width: 760px) {
  #home-hero .hero { grid-template-columns: minmax(0, 1fr); gap: 12px; }
  #home-hero .stage { width: 200px; order: -1; }
  #home-hero nav { grid-template-columns: minmax(0, 1fr); }
  #home-hero h2 { font-size: 1.6rem; }
}
"""
