//! What only TLS has: certificates, and sentences about what is wrong with them.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use polydist_transport::{
    Address, Certificate, Error, Kind, RevocationOptions, TlsConfig, TlsInfo, TlsOptions, Verify,
    Version,
};
use rcgen::{
    BasicConstraints, CertificateRevocationList, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use support::{Authority, Place, soon, tls, until};
use tokio::io::AsyncReadExt;

/// A listener and a dialler made from these.
fn between(server: &TlsOptions, client: &TlsOptions) -> Place {
    let mut place = tls();
    place.listen.tls = Some(TlsConfig::server(server).unwrap());
    place.dial.tls = Some(TlsConfig::client(client).unwrap());
    place
}

/// How it ends on both sides, when it does not work.
async fn failures(place: &Place) -> (String, String) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, connected) = place.dial(listener.address());
    // In TLS 1.3 the client is done before the server has looked at its certificate.
    let ours: Error = match soon(connected).await {
        Ok(_) => soon(dialled.recv()).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(ours.kind(), Kind::Tls, "{ours}");
    until(|| listener.info().failed == 1).await;
    listener.close();
    assert!(incoming.next().await.is_none());
    (ours.to_string(), listener.info().last_error.unwrap())
}

/// What the listener's side is told of a connection that works.
async fn works(place: &Place) -> TlsInfo {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    dialled.send(b"hello").unwrap();
    assert_eq!(soon(accepted.connection.recv()).await.unwrap(), b"hello");
    accepted.info.tls.unwrap()
}

fn only(version: Version, options: &TlsOptions) -> TlsOptions {
    TlsOptions {
        versions: vec![version],
        ..options.clone()
    }
}

/// Whichever side has `bad`, the one with `good` says `why` it refuses it and the other what it was
/// `told`, in both versions of TLS.
async fn refused(bad: &TlsOptions, good: &TlsOptions, why: &str, told: &str) {
    for version in [Version::Tls12, Version::Tls13] {
        let (bad, good) = (only(version, bad), only(version, good));
        let (dialler, listener) = failures(&between(&bad, &good)).await;
        check(version, &dialler, why, &listener, told);
        let (dialler, listener) = failures(&between(&good, &bad)).await;
        check(version, &listener, why, &dialler, told);
    }
}

fn check(version: Version, refusing: &str, why: &str, refused: &str, told: &str) {
    assert!(refusing.contains(why), "{version:?}: {why}: {refusing}");
    assert!(refused.contains(told), "{version:?}: {told}: {refused}");
}

#[tokio::test]
async fn versions_are_what_both_sides_allow() {
    let options = Authority::new().issue(&["127.0.0.1"]);
    let old = only(Version::Tls12, &options);
    let new = only(Version::Tls13, &options);
    assert_eq!(works(&between(&options, &options)).await.version, "tlsv1.3");
    assert_eq!(works(&between(&options, &old)).await.version, "tlsv1.2");
    assert_eq!(works(&between(&old, &options)).await.version, "tlsv1.2");
    for (server, client) in [(&new, &old), (&old, &new)] {
        let (ours, theirs) = failures(&between(server, client)).await;
        assert!(ours.contains("compare versions"), "{ours}");
        assert!(theirs.contains("no TLS version in common"), "{theirs}");
    }
}

#[tokio::test]
async fn ciphers_and_groups_are_what_both_sides_allow_in_the_clients_order() {
    let options = Authority::new().issue(&["127.0.0.1"]);
    let list = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect());
    let ciphers = |names: &[&str]| TlsOptions {
        ciphers: list(names),
        ..options.clone()
    };
    const AES128: &str = "TLS_AES_128_GCM_SHA256";
    const AES256: &str = "TLS_AES_256_GCM_SHA384";
    const OLD: &str = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    let (one, other) = (ciphers(&[AES128, AES256]), ciphers(&[AES256, AES128]));
    assert_eq!(works(&between(&one, &other)).await.cipher, AES256);
    assert_eq!(works(&between(&other, &one)).await.cipher, AES128);
    let agreed = works(&between(&options, &ciphers(&[OLD]))).await;
    assert_eq!((agreed.version, &agreed.cipher[..]), ("tlsv1.2", OLD));
    let (ours, theirs) = failures(&between(&ciphers(&[AES128]), &ciphers(&[AES256]))).await;
    assert!(ours.contains("compare ciphers"), "{ours}");
    assert!(theirs.contains("no cipher in common"), "{theirs}");

    let groups = |names: &[&str]| TlsOptions {
        groups: list(names),
        ..options.clone()
    };
    works(&between(
        &groups(&["x25519", "secp384r1"]),
        &groups(&["secp384r1"]),
    ))
    .await;
    let apart = between(&groups(&["x25519"]), &groups(&["secp256r1"]));
    let (ours, theirs) = failures(&apart).await;
    assert!(ours.contains("no cipher, group or kind of key"), "{ours}");
    assert!(theirs.contains("no group for the key exchange"), "{theirs}");
}

#[tokio::test]
async fn chacha20_comes_first_in_tls_1_2_unless_the_user_has_an_order() {
    let options = only(Version::Tls12, &Authority::new().issue(&["127.0.0.1"]));
    let agreed = works(&between(&options, &options)).await;
    assert!(agreed.cipher.contains("CHACHA20"), "{}", agreed.cipher);
}

#[tokio::test]
async fn an_unknown_authority_is_refused_by_either_side() {
    let (a, b) = (Authority::new(), Authority::new());
    let good = a.issue(&["127.0.0.1"]);
    let stranger = TlsOptions {
        roots: a.roots(),
        ..b.issue(&["127.0.0.1"])
    };
    refused(
        &stranger,
        &good,
        "not in cacertfile",
        "does not trust the authority",
    )
    .await;
}

#[tokio::test]
async fn a_wrong_signature_is_refused_by_either_side() {
    let (a, b) = (Authority::named("one"), Authority::named("one"));
    let forged = TlsOptions {
        roots: a.roots(),
        ..b.issue(&["127.0.0.1"])
    };
    let good = a.issue(&["127.0.0.1"]);
    refused(
        &forged,
        &good,
        "was not signed by the authority",
        "a signature is wrong",
    )
    .await;
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_refused_by_either_side_and_named_so() {
    let authority = Authority::new();
    let good = authority.issue(&["127.0.0.1"]);
    let expired = authority.issue_with(&["127.0.0.1"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let future = authority.issue_with(&["127.0.0.1"], |params| {
        params.not_before = date_time_ymd(2400, 1, 1);
        params.not_after = date_time_ymd(2401, 1, 1);
    });
    let told = "this node's certificate has expired";
    refused(&expired, &good, "the peer's certificate has expired", told).await;
    let between = authority.below_with("between", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let under_it = between.issue(&["127.0.0.1"]);
    let told = "or that of one of its authorities, for expired";
    refused(&under_it, &good, "or that of an authority it sent", told).await;
    let told = "this node's certificate is not valid yet";
    refused(
        &future,
        &good,
        "the peer's certificate is not valid yet",
        told,
    )
    .await;
}

#[tokio::test]
async fn a_certificate_for_something_else_is_refused_by_either_side() {
    let authority = Authority::new();
    let other = authority.issue_with(&["127.0.0.1"], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    });
    let good = authority.issue(&["127.0.0.1"]);
    let told = "this node's certificate may not be used for this";
    refused(
        &other,
        &good,
        "the peer's certificate may not be used for this",
        told,
    )
    .await;
}

#[tokio::test]
async fn an_authoritys_own_certificate_is_no_nodes() {
    let key = KeyPair::generate().unwrap();
    let authority = Authority::new();
    let itself = authority.issue_for(&key, &["127.0.0.1"], |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let good = authority.issue(&["127.0.0.1"]);
    refused(&itself, &good, "it is an authority's", "its own reason").await;
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused_with_both_names() {
    let options = Authority::new().issue(&["elsewhere.example"]);
    let (ours, theirs) = failures(&between(&options, &options)).await;
    assert!(
        ours.contains("127.0.0.1") && ours.contains("elsewhere.example"),
        "{ours}"
    );
    assert!(
        theirs.contains("is for elsewhere.example, and must be for the host"),
        "{theirs}"
    );
    let mut place = between(&options, &options);
    place.dial.server_name = Some("elsewhere.example".into());
    works(&place).await;
    place.dial.server_name = Some("no such name!".into());
    let refused = polydist_transport::dial(place.transport, place.address, place.dial);
    assert_eq!(refused.unwrap_err().kind(), Kind::BadOption);
    let careless = TlsOptions {
        check_host: false,
        ..options.clone()
    };
    works(&between(&options, &careless)).await;
}

#[tokio::test]
async fn a_common_name_counts_where_there_is_no_other_name_of_a_host() {
    let authority = Authority::new();
    let common = |hosts: &[&str]| {
        authority.issue_with(hosts, |params| {
            params.distinguished_name = DistinguishedName::new();
            params
                .distinguished_name
                .push(DnType::CommonName, "common.example");
        })
    };
    let mut place = between(&common(&[]), &common(&[]));
    place.dial.server_name = Some("Common.example".into());
    works(&place).await;
    let mut place = between(&common(&["127.0.0.1"]), &common(&[]));
    place.dial.server_name = Some("common.example".into());
    let (ours, _) = failures(&place).await;
    assert!(ours.contains("only valid for 127.0.0.1"), "{ours}");
}

#[tokio::test]
async fn a_peer_without_a_certificate_is_refused_when_one_is_wanted() {
    let options = Authority::new().issue(&["127.0.0.1"]);
    let nameless = TlsOptions {
        identities: Vec::new(),
        ..options.clone()
    };
    let deferred = TlsOptions {
        verify: Verify::Deferred,
        ..options.clone()
    };
    for version in [Version::Tls12, Version::Tls13] {
        let nameless = only(version, &nameless);
        for server in [&options, &deferred] {
            let (ours, theirs) = failures(&between(server, &nameless)).await;
            assert!(theirs.contains("fail_if_no_peer_cert"), "{theirs}");
            assert!(ours.contains("wants a certificate"), "{ours}");
            let lenient = TlsOptions {
                fail_if_no_peer_cert: false,
                ..server.clone()
            };
            let agreed = works(&between(&lenient, &nameless)).await;
            assert!(agreed.chain.is_empty() && agreed.own.is_some());
        }
    }
}

#[tokio::test]
async fn verify_none_takes_any_certificate_for_any_name() {
    let any = |host: &str| TlsOptions {
        verify: Verify::None,
        roots: None,
        ..Authority::new().issue(&[host])
    };
    for version in [Version::Tls12, Version::Tls13] {
        let agreed = works(&between(&any("a"), &only(version, &any("b")))).await;
        assert!(agreed.chain.is_empty(), "the client was not asked");
    }
}

#[tokio::test]
async fn a_deferred_verification_has_the_chain_to_look_at() {
    let any = |host: &str| TlsOptions {
        verify: Verify::Deferred,
        roots: None,
        ..Authority::new().below("between", 7).issue(&[host])
    };
    for version in [Version::Tls12, Version::Tls13] {
        let agreed = works(&between(&any("a"), &only(version, &any("b")))).await;
        assert_eq!(agreed.chain.len(), 2);
        assert_eq!(Certificate::of(&agreed.chain[0]).unwrap().hosts, ["b"]);
        assert_eq!(agreed.own.unwrap().hosts, ["a"]);
    }
}

#[tokio::test]
async fn there_may_be_as_many_intermediate_certificates_as_depth_says() {
    let authority = Authority::new();
    let deep = authority
        .below("first", 1)
        .below("second", 2)
        .issue(&["127.0.0.1"]);
    let depth = |depth| TlsOptions {
        depth,
        ..authority.issue(&["127.0.0.1"])
    };
    for enough in [None, Some(2), Some(9)] {
        works(&between(&deep, &depth(enough))).await;
        works(&between(&depth(enough), &deep)).await;
    }
    let why = "there are more than 1 intermediate certificates";
    refused(
        &deep,
        &depth(Some(1)),
        why,
        "too many intermediate certificates",
    )
    .await;
    works(&between(&depth(Some(0)), &depth(Some(0)))).await;
}

/// With these revocation lists.
fn looking_up(
    options: &TlsOptions,
    lists: &[&CertificateRevocationList],
    chain: bool,
    allow_unknown: bool,
) -> TlsOptions {
    let files = lists.iter().map(|list| list.pem().unwrap().into_bytes());
    TlsOptions {
        revocation: Some(RevocationOptions {
            files: files.collect(),
            chain,
            allow_unknown,
        }),
        ..options.clone()
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_by_either_side() {
    let authority = Authority::new();
    let numbered = |number: u64| {
        authority.issue_with(&["127.0.0.1"], |params| {
            params.serial_number = Some(number.into());
        })
    };
    let (good, bad) = (numbered(1), numbered(2));
    let list = authority.revoked(&[2], -2..1);
    let told = "this node's certificate has been revoked";
    for allow_unknown in [false, true] {
        let checking = looking_up(&good, &[&list], true, allow_unknown);
        refused(&bad, &checking, "has been revoked", told).await;
        works(&between(&good, &checking)).await;
        works(&between(&checking, &good)).await;
    }
    let der = TlsOptions {
        revocation: Some(RevocationOptions {
            files: vec![list.der().to_vec()],
            ..RevocationOptions::default()
        }),
        ..good
    };
    refused(&bad, &der, "has been revoked", told).await;
}

#[tokio::test]
async fn without_a_current_revocation_list_certificates_are_refused_unless_allowed() {
    let authority = Authority::named("the issuer");
    let options = authority.issue(&["127.0.0.1"]);
    let told = "its own reason not to accept this node's certificate, such as a revocation list";
    let (other, old) = (
        Authority::new().revoked(&[], -2..1),
        authority.revoked(&[9], -9..-1),
    );
    let forged = Authority::named("the issuer").revoked(&[], -2..1);
    for (list, why) in [
        (&other, "there is no revocation list"),
        (&old, "is out of date"),
        (&forged, "was not signed by that issuer"),
    ] {
        let strict = looking_up(&options, &[list], true, false);
        refused(&options, &strict, why, told).await;
    }
    for list in [&other, &old] {
        works(&between(
            &options,
            &looking_up(&options, &[list], true, true),
        ))
        .await;
    }
    let current = authority.revoked(&[], -2..1);
    for lists in [[&old, &current], [&current, &old]] {
        works(&between(
            &options,
            &looking_up(&options, &lists, true, false),
        ))
        .await;
    }
    let error = TlsConfig::client(&looking_up(&options, &[], true, false)).unwrap_err();
    assert!(error.to_string().contains("there are none"), "{error}");
}

#[tokio::test]
async fn authorities_between_are_looked_up_for_the_whole_chain_only() {
    let authority = Authority::new();
    let between_them = authority.below("between", 5);
    let below = between_them.issue(&["127.0.0.1"]);
    let good = authority.issue(&["127.0.0.1"]);
    let lists = [
        &authority.revoked(&[5], -2..1),
        &between_them.revoked(&[], -2..1),
    ];
    let told = "this node's certificate has been revoked, or that of one of its authorities";
    refused(
        &below,
        &looking_up(&good, &lists, true, false),
        "has been revoked",
        told,
    )
    .await;
    works(&between(&below, &looking_up(&good, &lists, false, false))).await;
}

#[tokio::test]
async fn of_several_certificates_the_first_is_shown_whose_key_suits_the_peer() {
    let authority = Authority::new();
    let ecdsa = authority.issue(&["127.0.0.1"]);
    let rsa = KeyPair::from_pem(include_str!("keys/rsa.pem")).unwrap();
    let rsa = authority.issue_for(&rsa, &["127.0.0.1"], |_| ());
    let several = TlsOptions {
        identities: [rsa.identities, ecdsa.identities.clone()].concat(),
        ..ecdsa.clone()
    };
    let picky = TlsOptions {
        ciphers: Some(vec!["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384".into()]),
        ..ecdsa.clone()
    };
    let own = |options| TlsConfig::server(options).unwrap().own().to_vec();
    let both = own(&several);
    assert_eq!(
        works(&between(&several, &ecdsa)).await.own.as_ref(),
        Some(&both[0])
    );
    assert_eq!(
        works(&between(&several, &picky)).await.own.as_ref(),
        Some(&both[1])
    );
    let agreed = works(&between(&ecdsa, &several)).await;
    assert_eq!(Certificate::of(&agreed.chain[0]).unwrap(), both[0]);
    let (ours, theirs) = failures(&between(
        &TlsOptions {
            identities: several.identities[..1].to_vec(),
            ..several.clone()
        },
        &picky,
    ))
    .await;
    assert!(ours.contains("kind of key"), "{ours}");
    assert!(theirs.contains("the kind of this node's key"), "{theirs}");
}

#[tokio::test]
async fn of_several_certificates_one_is_shown_whose_authority_the_peer_trusts() {
    let (old, new) = (Authority::new(), Authority::new().below("between", 3));
    let of_new = new.issue(&["127.0.0.1"]);
    let of_both = TlsOptions {
        identities: [
            old.issue(&["127.0.0.1"]).identities,
            of_new.identities.clone(),
        ]
        .concat(),
        ..of_new.clone()
    };
    for version in [Version::Tls12, Version::Tls13] {
        let agreed = works(&between(&of_new, &only(version, &of_both))).await;
        assert_eq!(
            agreed.chain.len(),
            2,
            "the old one has no authority between"
        );
    }
}

#[tokio::test]
async fn keys_may_be_of_any_common_kind() {
    let authority = Authority::new();
    let rsa = KeyPair::from_pem(include_str!("keys/rsa.pem")).unwrap();
    let kinds = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
    ];
    let generated = kinds.map(|kind| KeyPair::generate_for(kind).unwrap());
    for key in generated.iter().chain([&rsa]) {
        let options = authority.issue_for(key, &["127.0.0.1"], |_| ());
        for version in [Version::Tls12, Version::Tls13] {
            works(&between(&options, &only(version, &options))).await;
        }
    }
}

#[tokio::test]
async fn without_sni_the_server_is_not_told_the_name() {
    let options = Authority::new().issue(&["a"]);
    for sni in [true, false] {
        let mut place = tls();
        let client = TlsOptions {
            sni,
            ..options.clone()
        };
        place.dial.tls = Some(TlsConfig::client(&client).unwrap());
        place.dial.server_name = Some("secret.example".into());
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Ip(server.local_addr().unwrap());
        let (_dialled, _connected) = place.dial(&address);
        let (mut peer, _) = soon(server.accept()).await.unwrap();
        let mut header = [0; 5];
        soon(peer.read_exact(&mut header)).await.unwrap();
        let mut hello = vec![0; u16::from_be_bytes([header[3], header[4]]).into()];
        soon(peer.read_exact(&mut hello)).await.unwrap();
        let name = b"secret.example";
        assert_eq!(hello.windows(name.len()).any(|bytes| bytes == name), sni);
    }
}

#[tokio::test]
async fn plain_bytes_at_a_tls_port_end_at_once_and_silence_at_the_deadline() {
    let mut place = tls();
    place.listen.setup_time = Duration::from_millis(300);
    let (listener, _incoming) = place.open().unwrap();
    let Address::Ip(ip) = *listener.address() else {
        unreachable!("it is TCP")
    };
    let mut plain = TcpStream::connect(ip).unwrap();
    plain
        .write_all(b"\0\x05Nabcd and so on, for more than a header")
        .unwrap();
    until(|| listener.info().failed == 1).await;
    let sentence = listener.info().last_error.unwrap();
    assert!(sentence.contains("is not TLS"), "{sentence}");
    let _silent = TcpStream::connect(ip).unwrap();
    until(|| listener.info().failed == 2).await;
    assert_eq!(listener.info().pending, 0);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_a_timeout() {
    let mut place = tls();
    place.dial.timeout = Duration::from_millis(200);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Ip(silent.local_addr().unwrap());
    let error = soon(place.dial(&address).1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.to_string().contains("200 ms"), "{error}");
}

#[tokio::test]
async fn closing_gives_up_a_tls_handshake_and_its_socket_at_once() {
    let place = tls();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Ip(silent.local_addr().unwrap());
    let (dialled, connected) = place.dial(&address);
    let mut peer = tokio::task::spawn_blocking(move || {
        let (mut peer, _) = silent.accept().unwrap();
        peer.set_read_timeout(Some(support::SOON)).unwrap();
        peer.read_exact(&mut [0; 5]).unwrap(); // the handshake is under way
        peer
    })
    .await
    .unwrap();
    let start = Instant::now();
    dialled.close();
    assert_eq!(soon(connected).await.unwrap_err().kind(), Kind::Closed);
    let rest = tokio::task::spawn_blocking(move || peer.read_to_end(&mut Vec::new()));
    rest.await.unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_millis(500));
}

#[tokio::test]
async fn the_time_it_took_includes_the_tls_handshake_on_both_sides() {
    const DELAY: Duration = Duration::from_millis(60);
    let place = tls();
    let (listener, mut incoming) = place.open().unwrap();
    let Address::Ip(behind) = *listener.address() else {
        unreachable!("it is TCP")
    };
    let front = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Ip(front.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut client, _) = front.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(behind).await.unwrap();
        tokio::time::sleep(DELAY).await;
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    let (_dialled, connected) = place.dial(&address);
    assert!(soon(connected).await.unwrap().took >= DELAY);
    assert!(soon(incoming.next()).await.unwrap().info.took >= DELAY - Duration::from_millis(5));
}

#[tokio::test]
async fn listening_and_dialling_want_their_own_part_of_the_options() {
    let mut place = tls();
    std::mem::swap(&mut place.listen.tls, &mut place.dial.tls);
    assert_eq!(place.open().unwrap_err().kind(), Kind::BadOption);
    let refused = polydist_transport::dial(place.transport, place.address, place.dial);
    assert_eq!(refused.unwrap_err().kind(), Kind::BadOption);
}
