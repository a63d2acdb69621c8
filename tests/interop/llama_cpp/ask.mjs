// Asks llama.cpp about a GGUF file: node ask.mjs QUESTION.json prints a JSON object.
//   {model, texts: [string], tokens: [id]} -> {plain: [[id]], parsed: [[id]], logits: [[number]]}
// `plain` are the texts' ids as llama.cpp makes them, `parsed` those with control tokens parsed, without BOS both;
// `logits` are those of the token after each of `tokens`.
import {readFileSync} from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const {model: modelPath, texts, tokens} = JSON.parse(readFileSync(process.argv[2], "utf8"));
const llama = await getLlama({build: "never", gpu: false, progressLogs: false, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath});
const answer = {
    plain: texts.map((text) => model.tokenize(text, false)),
    parsed: texts.map((text) => model.tokenize(text, true)),
    logits: []
};
if (tokens.length) {
    const context = await model.createContext({contextSize: 256, sequences: 1, threads: 2});
    const asked = tokens.map((token) => [token, {generateNext: {logits: true}}]);
    for (const result of await context.getSequence().controlledEvaluate(asked)) {
        const row = new Array(result.next.logits.size);
        for (const [token, logit] of result.next.logits) row[token] = logit;
        answer.logits.push(row);
    }
}
process.stdout.write(JSON.stringify(answer), () => process.exit(0));
