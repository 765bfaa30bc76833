//! `polydist-cert`: certificates for the nodes of a cluster, and the file that tells Erlang of them.
//!
//! ```text
//! polydist-cert ca /etc/cluster/ca                                 an authority
//! polydist-cert node /etc/cluster/a a@a.example.org --ca /etc/cluster/ca
//! erl ... -proto_dist polydist_tls -ssl_dist_optfile /etc/cluster/a/dist_tls.conf
//! polydist-cert renew /etc/cluster/a --ca /etc/cluster/ca
//! polydist-cert show /etc/cluster/a
//! polydist-cert crl /etc/cluster/ca --revoke /etc/cluster/a        crl.pem, without the node a
//! polydist-cert check /etc/cluster/a/dist_tls.conf                 would two such nodes connect?
//! ```
//!
//! The same file works for stock `-proto_dist inet_tls`. Keys are never printed.

#![forbid(unsafe_code)]

mod check;
mod crl;
mod error;
mod facts;
mod files;
mod issue;
mod keys;
mod make;
mod names;
mod options;
mod output;
mod rehearsal;
mod report;
mod show;
mod terms;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Makes certificates for Erlang distribution over TLS.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes ca.pem, ca-key.pem, cert.pem, key.pem and dist_tls.conf into a directory.
    Init(make::Init),
    /// Makes a cluster's authority: ca.pem and ca-key.pem.
    Ca(make::Ca),
    /// Makes a node's certificate: cert.pem, key.pem, ca.pem and dist_tls.conf.
    Node(make::Node),
    /// Replaces a node's certificate and key by new ones with the same names.
    Renew(make::Renew),
    /// Takes certificates back: writes the authority's list of revoked ones, crl.pem.
    Crl(crl::Crl),
    /// Says what is in certificates and in lists of revoked ones.
    Show(show::Show),
    /// Tells whether two nodes would accept each other, and why not: exit status 0 if they would, 1
    /// if not, 2 if that cannot be found out.
    Check(check::Check),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Init(init) => make::init(&init),
        Command::Ca(ca) => make::ca(&ca),
        Command::Node(node) => make::node(&node),
        Command::Renew(renew) => make::renew(&renew),
        Command::Crl(crl) => crl::crl(&crl),
        Command::Show(show) => show::show(&show),
        Command::Check(check) => return check_status(&check),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::say(Some(error.to_string()));
            ExitCode::FAILURE
        }
    }
}

/// Not the failure of others, which here means that the nodes would not connect.
fn check_status(check: &check::Check) -> ExitCode {
    check::check(check).unwrap_or_else(|error| {
        output::say(Some(error.to_string()));
        ExitCode::from(2)
    })
}
