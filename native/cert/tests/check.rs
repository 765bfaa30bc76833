//! `check` as its users call it.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use support::{Lab, fails, ok, openssl, run, says};

const OK: i32 = 0;
const APART: i32 = 1;

/// What it prints, with this exit status.
fn check(status: i32, args: &[&str]) -> String {
    let output = run(&[&["check"], args].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        output.status.code(),
        Some(status),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Its lines of this level.
fn lines<'a>(text: &'a str, level: &str) -> Vec<&'a str> {
    text.lines()
        .filter(|line| line.starts_with(level))
        .collect()
}

impl Lab {
    fn conf(&self, node: &str) -> String {
        self.path(&format!("{node}/dist_tls.conf"))
    }

    /// An option file with these options for both sides, and more for the client and the server.
    fn options(&self, both: &str, server: &str, client: &str) -> String {
        let file = self.path("options.conf");
        let text = format!("[{{server, [{both}{server}]}}, {{client, [{both}{client}]}}].\n");
        fs::write(&file, text).unwrap();
        file
    }

    /// The options of a node's own files.
    fn files(&self, node: &str) -> String {
        let path = |name: &str| self.path(&format!("{node}/{name}"));
        format!(
            "{{certfile, {:?}}}, {{keyfile, {:?}}}, {{cacertfile, {:?}}}",
            path("cert.pem"),
            path("key.pem"),
            path("ca.pem")
        )
    }

    /// A certificate by openssl, signed by the authority in `ca`, with these extensions.
    fn by_openssl(&self, node: &str, extensions: &str, days: &str) {
        self.node(node, &["x@h"]);
        let (key, request) = (
            self.path(&format!("{node}/key.pem")),
            self.path("request.pem"),
        );
        openssl(&[
            "req", "-new", "-key", &key, "-subj", "/CN=x", "-out", &request,
        ]);
        fs::write(self.path("ext"), extensions).unwrap();
        let (ca, ca_key) = (self.path("ca/ca.pem"), self.path("ca/ca-key.pem"));
        let (cert, ext) = (self.path(&format!("{node}/cert.pem")), self.path("ext"));
        let args = [
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
        ];
        openssl(&[&args[..], &["-extfile", &ext, "-days", days, "-out", &cert]].concat());
    }
}

#[test]
fn nodes_of_one_authority_accept_each_other() {
    let lab = Lab::new();
    lab.node("a", &["a@h"]);
    lab.node("b", &["b@i", "--key", "rsa"]);
    let (a, b) = (lab.conf("a"), lab.conf("b"));
    let found = check(OK, &[&a, &b, "--node", "a@h", "--peer", "b@i"]);
    says(
        &found,
        &[
            "ok       a@h dials b@i: it comes up, with TLSv1_3, TLS_",
            "ok       b@i dials a@h: it comes up",
            "a/cert.pem: it is for a@h\n",
            "b/cert.pem: it is for b@i\n",
            "a/key.pem: it holds a private key; its mode is 0600\n",
            "the options of the server can be used, and its key is that of its certificate",
            "365 days",
            "a@h and b@i accept each other, whichever dials\n",
        ],
    );
    assert_eq!(lines(&found, "warning"), [""; 0]);
    let found = check(OK, &[&a]);
    says(&found, &["the node dials a node like it: it comes up"]);
    assert_eq!(lines(&found, "warning").len(), 1, "{found}");
    says(&found, &["warning  ", "--node and --peer"]);
    assert_eq!(
        check(OK, &[&lab.conf("a"), "--node", "a@h", "--peer", "a@h"])
            .lines()
            .count(),
        10
    );
}

#[test]
fn a_stranger_is_refused_by_the_side_that_does_not_know_its_authority() {
    let lab = Lab::new();
    lab.node("a", &["a@h"]);
    ok(&["init", &lab.path("b"), "--host", "i"]);
    let both = [
        &lab.conf("a"),
        &lab.conf("b"),
        "--node",
        "a@h",
        "--peer",
        "b@i",
    ]
    .map(String::from);
    let both = both.each_ref().map(String::as_str);
    let unknown = "the peer's certificate comes from an authority that is not in cacertfile";
    let found = check(APART, &both);
    says(
        &found,
        &[
            &format!("error    a@h dials b@i: a@h says: TLS with b@i failed: {unknown}"),
            &format!("error    b@i dials a@h: b@i says: TLS with a@h failed: {unknown}"),
            "a@h and b@i would not connect, or not both ways: see the errors\n",
        ],
    );
    // Now b knows the authority of a: its server refuses no more, nor does its client.
    let trusted = ["a/ca.pem", "b/ca.pem"].map(|ca| fs::read_to_string(lab.path(ca)).unwrap());
    fs::write(lab.path("b/ca.pem"), trusted.concat()).unwrap();
    let found = check(APART, &both);
    says(
        &found,
        &[
            "b/ca.pem, certificate 2: it is valid",
            "error    b@i dials a@h: a@h says: ",
        ],
    );
}

#[test]
fn a_certificate_must_be_for_the_name_in_both_directions() {
    let lab = Lab::new();
    lab.node("a", &["a@h"]);
    let found = check(
        APART,
        &[&lab.conf("a"), "--node", "z@elsewhere", "--peer", "a@h"],
    );
    says(
        &found,
        &[
            "ok       z@elsewhere dials a@h: it comes up",
            "a/cert.pem: it is not for z@elsewhere: it has neither the host elsewhere nor the URI erlang:z@elsewhere, but a@h, h",
            "polydist-cert node",
            "error    a@h dials z@elsewhere: a@h says: TLS with z@elsewhere failed: the peer's certificate is for another host",
            "a/cert.pem: it is for a@h\n",
        ],
    );
    // Whoever demands no certificates does not look at names either.
    let open = lab.options(&lab.files("a"), ", {fail_if_no_peer_cert, false}", "");
    let found = check(OK, &[&open, "--node", "z@h", "--peer", "z@h"]);
    says(
        &found,
        &["warning  ", "takes clients without a certificate"],
    );
    let found = check(APART, &[&open, "--node", "z@elsewhere", "--peer", "a@h"]);
    says(&found, &["a@h does not look at that"]);
}

#[test]
fn dates_are_told_before_they_matter_and_when_they_do() {
    let lab = Lab::new();
    lab.node("a", &["a@h", "--days", "20"]);
    let found = check(OK, &[&lab.conf("a")]);
    says(
        &found,
        &["warning  ", "a/cert.pem: it ends in 20 days", "renew it"],
    );
    ok(&[
        "init",
        &lab.path("old"),
        "--host",
        "h",
        "--days",
        "-3",
        "--ca",
        &lab.path("ca"),
    ]);
    let found = check(APART, &[&lab.conf("old")]);
    says(
        &found,
        &[
            "old/cert.pem: it ended on",
            "the peer's certificate has expired",
        ],
    );
    let trusting = ", {verify, verify_none}";
    let nobody = lab.options(&lab.files("old"), trusting, trusting);
    let found = check(OK, &[&nobody]);
    says(
        &found,
        &[
            "warning  ",
            "it ended on",
            "the server verifies nobody",
            "takes any server",
        ],
    );
}

#[test]
fn usages_that_are_missing_keep_a_certificate_from_one_end() {
    let lab = Lab::new();
    lab.by_openssl(
        "s",
        "subjectAltName=DNS:h\nextendedKeyUsage=serverAuth\n",
        "90",
    );
    lab.node("a", &["a@h"]);
    let found = check(
        APART,
        &[
            &lab.conf("s"),
            &lab.conf("a"),
            "--node",
            "s@h",
            "--peer",
            "a@h",
        ],
    );
    says(
        &found,
        &[
            "s/cert.pem: it may be used as a server\n",
            "s/cert.pem: as a client it lacks the usage clientAuth",
            "error    s@h dials a@h: a@h says: TLS with s@h failed: the peer's certificate may not be used for this",
            "ok       a@h dials s@h",
        ],
    );
    lab.by_openssl(
        "k",
        "subjectAltName=DNS:h\nkeyUsage=critical,keyAgreement\n",
        "90",
    );
    says(
        &check(APART, &[&lab.conf("k")]),
        &["its key usages lack digitalSignature"],
    );
}

#[test]
fn keys_and_passwords_that_every_user_can_read_are_warned_of() {
    let lab = Lab::new();
    lab.node("a", &["a@h"]);
    fs::set_permissions(lab.path("a/key.pem"), Permissions::from_mode(0o644)).unwrap();
    let found = check(OK, &[&lab.conf("a")]);
    says(
        &found,
        &[
            "warning  ",
            "a/key.pem: it holds a private key, and every user can read or write it (mode 0644)",
        ],
    );
    let secret = lab.options(&lab.files("a"), ", {password, \"wordOfMine\"}", "");
    fs::set_permissions(&secret, Permissions::from_mode(0o644)).unwrap();
    let found = check(OK, &[&secret]);
    says(
        &found,
        &["options.conf: it holds a password, and every user can read"],
    );
    assert!(!found.contains("wordOfMine"), "{found}");
}

#[test]
fn an_encrypted_key_wants_its_password() {
    let lab = Lab::new();
    fs::write(lab.path("pass"), "open sesame\n").unwrap();
    lab.node("a", &["a@h", "--passphrase-file", &lab.path("pass")]);
    let found = check(APART, &[&lab.conf("a")]);
    says(
        &found,
        &["the private key in keyfile is encrypted; set password"],
    );
    let password = |word: &str| {
        lab.options(
            &lab.files("a"),
            &format!(", {{password, {word:?}}}"),
            &format!(", {{password, <<{word:?}>>}}"),
        )
    };
    check(OK, &[&password("open sesame")]);
    let found = check(APART, &[&password("close sesame")]);
    says(&found, &["the password is wrong"]);
    assert!(!found.contains("close sesame"), "{found}");
}

#[test]
fn a_key_of_another_certificate_is_found() {
    let lab = Lab::new();
    lab.node("a", &["a@h"]);
    lab.node("b", &["b@h"]);
    fs::copy(lab.path("b/key.pem"), lab.path("a/key.pem")).unwrap();
    let found = check(APART, &[&lab.conf("a"), &lab.conf("b")]);
    says(
        &found,
        &[
            "a/dist_tls.conf: the options of the server cannot be used: certfile and keyfile do not belong together",
            "it cannot, since options cannot be used",
        ],
    );
}

#[test]
fn chains_in_a_wrong_order_and_roots_that_ended_are_told_of() {
    let lab = Lab::new();
    lab.node("a", &["a@h"]);
    ok(&["init", &lab.path("other"), "--host", "h"]);
    let read = |name: &str| fs::read_to_string(lab.path(name)).unwrap();
    fs::write(
        lab.path("a/cert.pem"),
        read("a/cert.pem") + &read("other/ca.pem"),
    )
    .unwrap();
    let mut old = CertificateParams::default();
    old.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    old.not_after = date_time_ymd(2020, 1, 1);
    let old = old.self_signed(&KeyPair::generate().unwrap()).unwrap();
    fs::write(lab.path("a/ca.pem"), read("ca/ca.pem") + &old.pem()).unwrap();
    let found = check(OK, &[&lab.conf("a")]);
    says(
        &found,
        &[
            "a/cert.pem: certificate 1 was issued by CN=polydist authority",
            "warning  ",
            "a/ca.pem, certificate 2: it ended on",
        ],
    );
}

#[test]
fn revoked_certificates_versions_and_server_names_count() {
    let lab = Lab::new();
    lab.node("a", &["a@h"]);
    lab.node("b", &["b@h"]);
    ok(&["crl", &lab.path("ca"), "--revoke", &lab.path("b")]);
    let lists = format!(
        ", {{crlfile, {:?}}}, {{crl_check, peer}}",
        lab.path("ca/crl.pem")
    );
    let a = lab.options(&lab.files("a"), &lists, &lists);
    let found = check(
        APART,
        &[&a, &lab.conf("b"), "--node", "a@h", "--peer", "b@h"],
    );
    says(
        &found,
        &[
            "a@h dials b@h: a@h says",
            "the peer's certificate has been revoked",
        ],
    );
    check(OK, &[&a]);
    let only = |version: &str| format!(", {{versions, ['{version}']}}");
    let apart = lab.options(&lab.files("a"), &only("tlsv1.2"), &only("tlsv1.3"));
    says(&check(APART, &[&apart]), &["no TLS version in common"]);
    let old = lab.options(&lab.files("a"), &only("tlsv1.2"), &only("tlsv1.2"));
    says(
        &check(OK, &[&old]),
        &["it comes up, with TLSv1_2, TLS_ECDHE_ECDSA_"],
    );
    let named = lab.options(&lab.files("a"), "", ", {server_name_indication, \"h\"}");
    says(
        &check(
            OK,
            &[&named, &lab.conf("b"), "--node", "a@h", "--peer", "b@h"],
        ),
        &["accept"],
    );
    let wrong = lab.options(
        &lab.files("a"),
        "",
        ", {server_name_indication, \"x.example\"}",
    );
    says(&check(APART, &[&wrong]), &["for another host"]);
    let any = lab.options(&lab.files("a"), "", ", {server_name_indication, disable}");
    says(
        &check(APART, &[&any, "--node", "a@h", "--peer", "b@elsewhere"]),
        &["ok       a@h dials b@elsewhere"],
    );
}

#[test]
fn a_side_without_options_has_the_files_of_the_other_and_later_options_win() {
    let lab = Lab::new();
    lab.node("a", &["a@h"]);
    let file = lab.path("server-only.conf");
    fs::write(
        &file,
        format!(
            "%% coding: utf-8\n[{{server, [{{certfile, \"nowhere\"}}, {}, secure_renegotiate]}}].",
            lab.files("a")
        ),
    )
    .unwrap();
    let found = check(OK, &[&file]);
    assert_eq!(lines(&found, "warning").len(), 1, "{found}");
    let maps = format!(
        "[{{client, [{{certs_keys, [#{{certfile => <<{:?}>>, keyfile => {:?}}}]}}, {{cacertfile, {:?}}}]}}].",
        lab.path("a/cert.pem"),
        lab.path("a/key.pem"),
        lab.path("a/ca.pem")
    );
    fs::write(&file, maps).unwrap();
    check(OK, &[&file]);
}

#[test]
fn options_that_it_does_not_look_at_are_named() {
    let lab = Lab::new();
    lab.node("a", &["a@h"]);
    let odd = ", {verify_fun, {m, f, []}}, {ciphers, [\"ECDHE-ECDSA-AES256-GCM-SHA384\"]}, {log_level, debug}";
    let found = check(
        OK,
        &[&lab.options(&lab.files("a"), odd, ", {crl_check, true}")],
    );
    says(
        &found,
        &[
            "warning  ",
            "verify_fun, among the options of the server, is not looked at",
            "ciphers, whose names are not those of the standards (TLS_AES_256_GCM_SHA384), among",
            "crl_check with lists that crlfile does not name, among the options of the client",
        ],
    );
    assert!(!found.contains("log_level"), "{found}");
}

#[test]
fn what_cannot_be_read_has_an_exit_status_of_its_own() {
    let lab = Lab::new();
    lab.node("a", &["a@h"]);
    let conf = lab.path("odd.conf");
    let odd = |text: &str| {
        fs::write(&conf, text).unwrap();
        let sentence = fails(2, &["check", &conf]);
        says(&sentence, &["odd.conf: "]);
        sentence
    };
    says(&odd(""), &["ends where there should be"]);
    says(
        &odd("[{server, [{certfile, os:getenv(\"HOME\")}]}]."),
        &["line 1: there is :", "plain terms"],
    );
    says(
        &odd("[{server,\n [{certfile, Dir ++ \"x\"}]}]."),
        &["line 2: there is Dir", "plain terms"],
    );
    says(
        &odd("[{server, [{password, \"se\" + \"cret\"}]}]."),
        &["line 1: there is +"],
    );
    says(&odd("[{server, []}]"), &["a full stop"]);
    says(&odd("[{server, []}]. x."), &["nothing behind"]);
    says(&odd("[{server, [{certfile, \"a}]}]."), &["line 1: "]);
    says(
        &odd(&format!("{}.", "[".repeat(100_000))),
        &["no more lists"],
    );
    says(
        &odd("#{server => []}."),
        &["[{server, [..]}, {client, [..]}]."],
    );
    says(&odd("[{server, [1]}]."), &["no {Name, Value}"]);
    says(
        &odd("[{server, [{verify, yes}]}]."),
        &["verify_peer or verify_none"],
    );
    says(&odd("[{server, [{certfile, 7}]}]."), &["a file name"]);
    says(&odd("[{server, [{keyfile, \"k\"}]}]."), &["no certfile"]);
    says(
        &odd("[{server, [{cert, <<48,130>>}]}]."),
        &["cert, an option of the server, has contents"],
    );
    says(&odd("[{server, [{depth, -1}]}]."), &["0 to 255"]);
    says(
        &odd("[{server, [{versions, [sslv3]}]}]."),
        &["'tlsv1.3' or 'tlsv1.2'"],
    );
    says(
        &odd("[{server, [{crl_check, perhaps}]}]."),
        &["best_effort"],
    );
    fs::write(&conf, "[{server, [{certfile, \"/nowhere/cert.pem\"}]}].").unwrap();
    says(
        &fails(2, &["check", &conf]),
        &["cannot read /nowhere/cert.pem"],
    );
    says(
        &fails(2, &["check", &lab.path("absent")]),
        &["cannot read", "absent"],
    );
    says(&fails(2, &["check"]), &["FILE"]);
    says(
        &fails(2, &["check", &lab.conf("a"), "--node", "nobody"]),
        &["no @"],
    );
}
