// The page of `crossdet serve`: sends pictures as they are, draws what comes back, and filters it by the sliders.
'use strict'
const at = id => document.getElementById(id)
const COLOURS = ['#e6194b', '#3cb44b', '#0082c8', '#ff8c00', '#aa46dc', '#00a0a0', '#f032e6', '#808000']
// `source` is what is looked at; `shown` what is seen: a picture, its file, and the answers to it
let about, source = null, shown = null, asked = 0, opened = 0, stream = null, opening = false

async function start () {
  about = await (await fetch('about')).json()
  const thresholds = new Map()
  for (const detector of about.detectors) {
    for (const one of detector.classes) if (!thresholds.has(one.name)) thresholds.set(one.name, one.threshold)
    const figure = document.createElement('figure')
    figure.append(document.createElement('canvas'), document.createElement('figcaption'))
    at('views').append(figure)
  }
  let number = 0
  for (const [name, threshold] of thresholds) {
    const row = document.createElement('label')
    const tick = Object.assign(document.createElement('input'), { type: 'checkbox', checked: true })
    const slider = Object.assign(document.createElement('input'),
      { type: 'range', min: Math.floor(100 * about.lowest_score) / 100, max: 1, step: 0.01, value: threshold, ariaLabel: `threshold of ${name}` })
    const text = document.createElement('span')
    const shown = document.createElement('output')
    text.textContent = name  // as text: a name may hold markup
    text.style.color = COLOURS[number++ % COLOURS.length]
    shown.textContent = Number(slider.value).toFixed(2)
    row.dataset.name = name
    row.append(tick, text, slider, shown)
    tick.addEventListener('change', look)
    slider.addEventListener('input', () => { row.dataset.moved = true; shown.textContent = Number(slider.value).toFixed(2); draw() })
    at('classes').append(row)
  }
}

const rows = () => [...at('classes').children]
const chosen = () => rows().filter(row => row.children[0].checked).map(row => row.dataset.name)
const colour = name => COLOURS[rows().findIndex(row => row.dataset.name === name) % COLOURS.length]
function above (found, detector) {  // a slider that nobody moved stands for each detector's own threshold
  const row = rows().find(row => row.dataset.name === found.class)
  const own = detector.classes.find(one => one.name === found.class).threshold
  return found.score >= (row.dataset.moved ? Number(row.children[2].value) : own)
}

async function detect (detector, file) {
  const known = new Set(detector.classes.map(one => one.name))
  const classes = chosen().filter(name => known.has(name))
  if (!classes.length) return { detections: [] }
  const query = new URLSearchParams([['detector', detector.name], ...classes.map(name => ['class', name])])
  for (;;) {
    const answer = await fetch(`detect?${query}`, { method: 'POST', body: file })
    if (answer.status !== 429 && answer.status !== 503) {
      const content = await answer.json()
      if (!answer.ok) throw new Error(content.error)
      return content
    }
    await new Promise(resolve => setTimeout(resolve, 1000 * Number(answer.headers.get('Retry-After') || 1)))
  }
}

async function look () {
  if (!source) return
  const mine = ++asked
  const { picture, file } = source
  try {
    const answers = await Promise.all(about.detectors.map(detector => detect(detector, file)))
    if (mine !== asked) return  // something newer was asked for
    shown = { picture, file, answers }  // together, so that no boxes lie on another picture than theirs
    at('error').textContent = ''
    at('save').disabled = false
    draw()
  } catch (error) {
    if (mine === asked) at('error').textContent = error.message
  }
}

function draw () {
  if (!shown) return
  const { picture, answers } = shown
  ;[...at('views').children].forEach((figure, number) => {
    const [canvas, caption] = figure.children
    const answer = answers[number]
    canvas.width = picture.width
    canvas.height = picture.height
    const paper = canvas.getContext('2d')
    paper.drawImage(picture, 0, 0)
    const boxes = answer ? answer.detections.filter(one => above(one, about.detectors[number])) : []
    const line = Math.max(2, Math.round(picture.width / 300))
    paper.font = `${Math.max(12, Math.round(picture.width / 45))}px sans-serif`
    paper.lineWidth = line
    for (const found of [...boxes].reverse()) {
      const [x1, y1, x2, y2] = found.box
      const text = `${found.class} ${found.score.toFixed(2)}`
      paper.strokeStyle = paper.fillStyle = colour(found.class)
      paper.strokeRect(x1, y1, x2 - x1, y2 - y1)
      const height = parseInt(paper.font) * 1.2
      paper.fillRect(x1, Math.max(0, y1 - height), paper.measureText(text).width + 6, height)
      paper.fillStyle = 'white'
      paper.fillText(text, x1 + 3, Math.max(0, y1 - height) + height * 0.8)
    }
    const time = answer && answer.milliseconds !== undefined ? `, ${answer.milliseconds} ms` : ''
    caption.textContent = `${about.detectors[number].name}: ${boxes.length} shown${time}`
  })
}

async function show (file, keep = false) {  // keep: what is seen stays until the answers are there, as of a film
  const mine = ++opened
  let picture
  try {
    picture = await createImageBitmap(file)
  } catch {
    if (mine !== opened) return
    at('error').textContent = `${file.name || 'camera'}: this browser cannot show it as a picture`
    return
  }
  if (mine !== opened) return  // a smaller one that was given later
  source = { picture, file }
  if (!keep) {
    shown = { picture, file, answers: [] }
    at('save').disabled = true
    draw()
  }
  await look()
}

function take (files) {
  if (!files.length) return
  if (stream) stop()
  at('note').textContent = files.length > 1
    ? `One picture at a time: ${files[0].name} is looked at, ${files.length - 1} more left out.` : ''
  show(files[0])
}

function save () {
  const { file, answers } = shown
  const content = about.detectors.map((detector, number) => ({
    detector: detector.name, ...answers[number], detections: answers[number].detections.filter(one => above(one, detector))
  }))
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: 'application/json' }))
  link.download = `${(file.name || 'camera').replace(/\.[^.]*$/, '')}.json`
  link.click()
  URL.revokeObjectURL(link.href)
}

function stop () {
  stream.getTracks().forEach(track => track.stop())
  stream = null
  at('camera').textContent = 'use the camera'
}

async function camera () {
  if (stream) return stop()
  if (opening) return
  if (!navigator.mediaDevices) {  // browsers have it only where nobody on the way can look
    at('error').textContent = 'no camera: browsers give it to pages of HTTPS or of localhost alone'
    return
  }
  opening = true
  let mine
  try {
    mine = stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } })
    opening = false
    at('camera').textContent = 'stop the camera'
    at('note').textContent = ''
    at('video').srcObject = mine
    await at('video').play()
  } catch (error) {
    opening = false
    if (mine && stream !== mine) return  // it was stopped meanwhile
    if (mine) stop()
    at('error').textContent = `no camera: ${error.message}`
    return
  }
  await film(mine)
}

async function film (mine) {  // ends with its own stream, whatever was begun since
  const still = document.createElement('canvas')
  while (stream === mine) {
    still.width = at('video').videoWidth
    still.height = at('video').videoHeight
    still.getContext('2d').drawImage(at('video'), 0, 0)
    const file = await new Promise(resolve => still.toBlob(resolve, 'image/jpeg', 0.9))
    if (file && stream === mine) await show(file, true)
  }
}

const tickAll = value => { rows().forEach(row => { row.children[0].checked = value }); look() }
at('all').addEventListener('click', () => tickAll(true))
at('none').addEventListener('click', () => tickAll(false))
at('save').addEventListener('click', save)
at('camera').addEventListener('click', camera)
at('file').addEventListener('change', event => take(event.target.files))
at('place').addEventListener('dragover', event => { event.preventDefault(); at('place').classList.add('over') })
at('place').addEventListener('dragleave', () => at('place').classList.remove('over'))
at('place').addEventListener('drop', event => {
  event.preventDefault()
  at('place').classList.remove('over')
  take(event.dataTransfer.files)
})
start()
