//! docs/phone: what the pages say is what the relay does. Configurations load, markup is the markup that webhooks answer with, and
//! commands can be typed.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use clap::Parser as _;
use serde_json::Value;
use voxrelay::{
    cli::Cli,
    config::{Config, PhoneKind},
    phone::{Account, Incoming, PublicUrl, TokenForm},
};

/// A block of a page: what stands behind the three backticks, and what is in it.
#[derive(Debug)]
struct Block {
    page: String,
    line: usize,
    info: String,
    text: String,
}

fn blocks(file: &Path) -> Vec<Block> {
    let page = file.file_name().unwrap().to_str().unwrap().to_owned();
    let (mut found, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    for (number, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                let (page, info, text) = (page.clone(), info.to_owned(), String::new());
                open = Some(Block { page, line: number + 1, info, text });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => block.text = format!("{}{line}\n", block.text),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{page}: a block that is not closed");
    found
}

fn pages() -> BTreeMap<String, Vec<Block>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/phone");
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let files = files.filter(|file| file.extension().is_some_and(|kind| kind == "md"));
    files.map(|file| (file.file_stem().unwrap().to_str().unwrap().to_owned(), blocks(&file))).collect()
}

/// Without a file for each key: those are looked for later.
fn load(block: &Block) -> Config {
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("phone.toml");
    fs::write(&file, &block.text).unwrap();
    Config::load(Some(&file), |_| None).unwrap_or_else(|error| panic!("{}:{}: {error}", block.page, block.line))
}

/// The page's own account.
fn account(kind: PhoneKind, blocks: &[Block]) -> Account {
    let block = blocks.iter().find(|block| block.info == "toml").expect("a configuration");
    let config = load(block).phone;
    let public = PublicUrl::new(config.public_url.as_deref().unwrap());
    // The key's file is not there; nothing that is looked at here is signed with it.
    Account::new(kind.name(), &config.accounts[kind.name()], &public, None).unwrap()
}

fn token(account: &Account) -> &'static str {
    match account.token_form() {
        TokenForm::Alphanumeric => "0123456789abcdef0123456789abcdef",
        TokenForm::Uuid => "01234567-89ab-4def-8123-456789abcdef",
    }
}

/// As a program writes it: nothing between elements, one space between attributes.
fn in_one_line(xml: &str) -> String {
    xml.lines().fold(String::new(), |so_far, line| {
        let line = line.trim();
        let space = if so_far.is_empty() || line.starts_with('<') { "" } else { " " };
        format!("{so_far}{space}{line}")
    })
}

#[test]
fn configurations_load() {
    let all = pages();
    let found: Vec<&Block> = all.values().flatten().filter(|block| block.info == "toml").collect();
    for block in &found {
        drop(load(block));
        // What stands there to be chosen, too.
        let chosen =
            |line: &str| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line).to_owned();
        let text = block.text.lines().map(chosen).collect::<Vec<_>>().join("\n");
        drop(load(&Block {
            page: format!("{}, uncommented", block.page),
            line: block.line,
            info: String::new(),
            text,
        }));
    }
    assert!(found.len() > PhoneKind::ALL.len());
}

#[test]
fn markup_is_what_webhooks_answer() {
    let all = pages();
    for kind in PhoneKind::ALL {
        let page = &all[kind.name()];
        let account = account(kind, page);
        let call = Incoming { call: "call-1".to_owned(), ..Incoming::default() };
        let mut seen = 0;
        for Block { page, line, info, text } in page.iter().filter(|block| block.info.contains(' ')) {
            let (language, what) = info.split_once(' ').unwrap();
            let text = text.replace("TOKEN", token(&account));
            let by_command = what == "command";
            let answer = account.connect(&Incoming { by_command, ..call.clone() }, token(&account)).unwrap();
            let answer = if by_command { answer.then.unwrap().body } else { answer.body };
            match language {
                "json" => {
                    let [page_says, relay_says] =
                        [&text, &answer].map(|text| serde_json::from_str::<Value>(text).unwrap());
                    assert_eq!(page_says, relay_says, "{page}:{line}");
                }
                "xml" => assert_eq!(in_one_line(&text), answer, "{page}:{line}"),
                _ => assert_eq!(text.trim(), answer, "{page}:{line}"),
            }
            seen += 1;
        }
        assert!(seen > 0, "{}: no markup", kind.name());
    }
}

#[test]
fn commands_can_be_typed() {
    let all = pages();
    for (page, blocks) in &all {
        let shells = blocks.iter().filter(|block| block.info == "sh");
        let lines = shells.flat_map(|block| block.text.lines()).filter(|line| line.starts_with("voxrelay "));
        let mut simulated = 0;
        for line in lines {
            let words = line.split('#').next().unwrap().trim_end().trim_end_matches('&').split_whitespace();
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{page}: {line}: {error}");
            }
            simulated += usize::from(line.starts_with("voxrelay phone simulate "));
        }
        let is_provider = PhoneKind::ALL.into_iter().any(|kind| kind.name() == page);
        assert!(simulated > 0 || !is_provider, "{page}: nothing to try it with");
    }
}
