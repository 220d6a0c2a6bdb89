// Everything the page says, in English and Japanese; {name} is filled in.

import { keep, kept } from "./storage.js";

const TEXTS = {
  en: {
    title: "Transcribe",
    language: "Language",
    input: "Recording",
    invitation: "Drop a recording here, or",
    choose: "Choose a file",
    record: "Record",
    stop: "Stop",
    live: "Live",
    liveHeading: "Live",
    liveStreaming: "The text appears while you speak.",
    livePauses: "The text appears whenever you pause.",
    options: "Options",
    decodingLive: "Live uses the server's own settings.",
    decoder: "Decoder",
    greedy: "Greedy: fast",
    beam: "Beam search: thorough",
    beamWidth: "Beam width",
    readings: "Number of readings",
    hotwords: "Hot words",
    hotwordsHint: "Preferred in beam search, with or without a weight: TANAKA:8,KYOTO",
    key: "API key",
    keyHint: "Only if the server asks for one. It is forgotten when this tab is closed.",
    progress: "Progress",
    opening: "Asking for the microphone …",
    recording: "Recording",
    uploading: "Uploading {name} …",
    transcribing: "Transcribing {name} …",
    finishing: "Finishing …",
    listening: "Listening …",
    cancel: "Cancel",
    cancelled: "Cancelled.",
    transcript: "Transcript",
    copy: "Copy",
    copied: "Copied.",
    saveText: "Text",
    saveTextLabel: "Text: download the transcript",
    saveSrt: "SRT",
    saveSrtLabel: "SRT: download as subtitles",
    again: "Again",
    againLabel: "Again: transcribe once more, with the options as they are now",
    done: "Transcript ready: {count} words",
    doneOne: "Transcript ready: 1 word",
    nothing: "Nothing was heard.",
    source: "{name} · {seconds} s",
    limit: "stopped there, as the server takes no longer ones",
    lost: "stopped there, as the microphone was taken away",
    words: "Words",
    wordsHint: "Click a word to hear it; arrow keys move.",
    sure: "sure",
    unsure: "under 85 %",
    doubtful: "under 50 %",
    word: "{word}, {percent} %",
    wordPlain: "{word}",
    wordDetail: "{word} · {percent} % · {start} to {end} s",
    wordDetailPlain: "{word} · {start} to {end} s",
    play: "Play",
    position: "Position",
    positionOf: "{seconds} of {duration} s",
    zoomIn: "Zoom in",
    zoomOut: "Zoom out",
    zoomAll: "Whole recording",
    timeline: "Waveform, spectrogram and words over time; arrow keys scroll",
    unheard: "This browser cannot play this recording, so there is no picture of it.",
    best: "Readings, best first",
    spoken: "recording",
    serverError: "The server answered with status {status}.",
    serverSays: "{message}",
    unreachable: "The server cannot be reached. Is it running?",
    badAnswer: "The server's answer could not be read.",
    tooLarge: "{name} has {size} MB; the server takes up to {limit} MB.",
    keyNeeded: "The server wants an API key: enter it under Options.",
    keyRefused: "The server does not take this API key: correct it under Options.",
    badKey: "An API key has only the letters, digits and signs of ASCII, without spaces: correct it under Options.",
    oneFile: "One recording at a time, please: these were {count} files.",
    busy: "One recording at a time, please: drop it again when this one is done.",
    unreadable: "{name} cannot be read: was it changed, moved or deleted? Choose it again.",
    unexpected: "This page has a fault: {reason}",
    insecure: "The browser lends its microphone only to pages over https or on localhost.",
    refused: "The microphone was not allowed. Allow it in the browser's settings for this page.",
    noMicrophone: "No microphone was found.",
    microphoneFailed: "The microphone cannot be used: {reason}",
    noSound: "Nothing was recorded.",
    tooSlow: "The connection is too slow for live transcription; it was ended.",
    cut: "The live connection was closed before its end.",
    noLive: "The live connection could not be opened.",
    copyFailed: "The browser does not let pages without https copy. The text is selected: press Ctrl+C, or ⌘C.",
    badOptions: "One of the options is out of its range.",
  },
  ja: {
    title: "文字起こし",
    language: "言語",
    input: "録音",
    invitation: "ここに音声ファイルをドロップ、または",
    choose: "ファイルを選ぶ",
    record: "録音する",
    stop: "停止",
    live: "ライブ",
    liveHeading: "ライブ",
    liveStreaming: "話している間に文字が表示されます。",
    livePauses: "話の切れ目ごとに文字が表示されます。",
    options: "設定",
    decodingLive: "ライブではサーバー側の設定が使われます。",
    decoder: "デコーダー",
    greedy: "貪欲法（速い）",
    beam: "ビームサーチ（丁寧）",
    beamWidth: "ビーム幅",
    readings: "候補の数",
    hotwords: "優先する語",
    hotwordsHint: "ビームサーチで優先されます。重みも付けられます: TANAKA:8,KYOTO",
    key: "APIキー",
    keyHint: "サーバーが求める場合だけ入力します。このタブを閉じると消えます。",
    progress: "進行状況",
    opening: "マイクの許可を待っています…",
    recording: "録音中",
    uploading: "{name} を送信中…",
    transcribing: "{name} を文字起こし中…",
    finishing: "仕上げ中…",
    listening: "聞いています…",
    cancel: "キャンセル",
    cancelled: "キャンセルしました。",
    transcript: "文字起こしの結果",
    copy: "コピー",
    copied: "コピーしました。",
    saveText: "テキスト",
    saveTextLabel: "テキストとして保存",
    saveSrt: "SRT",
    saveSrtLabel: "SRT字幕として保存",
    again: "もう一度",
    againLabel: "もう一度、今の設定で文字起こしする",
    done: "文字起こしができました（{count} 語）",
    doneOne: "文字起こしができました（1 語）",
    nothing: "何も聞き取れませんでした。",
    source: "{name} · {seconds} 秒",
    limit: "サーバーの上限に達したため、ここで停止しました",
    lost: "マイクが使えなくなったため、ここで停止しました",
    words: "単語",
    wordsHint: "単語を押すと音声が聞けます。矢印キーで移動できます。",
    sure: "確か",
    unsure: "85 % 未満",
    doubtful: "50 % 未満",
    word: "{word}、{percent} %",
    wordPlain: "{word}",
    wordDetail: "{word} · {percent} % · {start}–{end} 秒",
    wordDetailPlain: "{word} · {start}–{end} 秒",
    play: "再生",
    position: "再生位置",
    positionOf: "{duration} 秒中 {seconds} 秒",
    zoomIn: "拡大",
    zoomOut: "縮小",
    zoomAll: "全体を表示",
    timeline: "波形、スペクトログラム、単語の時間軸。矢印キーでスクロールできます",
    unheard: "このブラウザーではこの録音を再生できないため、図は表示されません。",
    best: "候補（確かな順）",
    spoken: "録音",
    serverError: "サーバーがステータス {status} を返しました。",
    serverSays: "サーバーからのメッセージ: {message}",
    unreachable: "サーバーに接続できません。起動しているか確認してください。",
    badAnswer: "サーバーの応答を読み取れませんでした。",
    tooLarge: "{name} は {size} MB です。サーバーの上限は {limit} MB です。",
    keyNeeded: "サーバーがAPIキーを求めています。「設定」で入力してください。",
    keyRefused: "サーバーがこのAPIキーを受け付けません。「設定」で直してください。",
    badKey: "APIキーに使えるのは半角の英数字と記号だけです。「設定」で直してください。",
    oneFile: "一度に扱える録音は一つだけです（{count} 個のファイルがドロップされました）。",
    busy: "一度に扱える録音は一つだけです。終わってからもう一度ドロップしてください。",
    unreadable: "{name} を読み取れません。変更、移動、削除された可能性があります。選び直してください。",
    unexpected: "このページに不具合があります: {reason}",
    insecure: "マイクは https または localhost のページでだけ使えます。",
    refused: "マイクが許可されていません。ブラウザーの設定で許可してください。",
    noMicrophone: "マイクが見つかりません。",
    microphoneFailed: "マイクを使えません: {reason}",
    noSound: "何も録音されませんでした。",
    tooSlow: "接続が遅すぎるため、ライブ文字起こしを終了しました。",
    cut: "ライブ接続が途中で切れました。",
    noLive: "ライブ接続を開けませんでした。",
    copyFailed: "https でないページからはコピーできません。文字を選択しましたので、Ctrl+C か ⌘C を押してください。",
    badOptions: "設定に範囲外の値があります。",
  },
};

let language = "en";

export function text(key, values = {}) {
  return TEXTS[language][key].replace(/\{(\w+)\}/g, (_whole, name) => values[name]);
}

// What went wrong, in the page's own words: a text's key and what it is filled with.
export class PageError extends Error {
  constructor(key, values = {}) {
    super(key);
    this.key = key;
    this.values = values;
  }
}

// Where nobody chose, the browser's language decides.
export function firstLanguage() {
  const chosen = kept("localStorage", "language");
  return chosen in TEXTS ? chosen : navigator.language.startsWith("ja") ? "ja" : "en";
}

export function keepLanguage(chosen) {
  keep("localStorage", "language", chosen);
}

export function speak(chosen, root) {
  language = chosen;
  root.documentElement.lang = chosen;
  root.title = text("title");
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", text(element.dataset.label));
    if (element.tagName === "BUTTON") element.title = text(element.dataset.label);
  }
}
