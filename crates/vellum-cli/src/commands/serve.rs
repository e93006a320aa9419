//! `vellum serve`.

use std::io::IsTerminal;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use vellum::{Limits, ServeOptions, Vellum};
use vellum_core::ImageSpec;

use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::stop::Stop;

/// `vellum serve ...`
#[derive(Args, Debug)]
pub struct Arguments {
    /// Listen on this Unix socket [default: vellum.sock in the home, unless --listen is given]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Listen on this TCP address; of a name that has several, on the first
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Allow --listen beyond loopback, where anybody can connect
    #[arg(long)]
    insecure: bool,
    /// Offer everything for reading only
    #[arg(long)]
    read_only: bool,
    /// After SIGTERM, wait at most this many seconds for requests under way
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_timeout: u64,
    /// Look this many microseconds for a busy client's next request before sleeping; 0 saves CPU time
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 200)]
    poll: u64,
    /// Only these images; all of every pool if none is named
    specs: Vec<ImageSpec>,
}

/// Reads `HOST:PORT`, where the host may be a name.
fn address(text: &str) -> std::result::Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|error| error.to_string())?;
    found.next().ok_or_else(|| "the name has no address".to_owned())
}

/// Logs warnings to standard error, or what `VELLUM_LOG` asks for.
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("VELLUM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(is_terminal)
        .with_writer(std::io::stderr)
        .init();
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(vellum: &Vellum, arguments: Arguments, output: &mut Output) -> Result {
    let usual = || vellum.home().join("vellum.sock");
    let socket = arguments.socket.or_else(|| arguments.listen.is_none().then(usual));
    let options = ServeOptions {
        socket: socket.clone(),
        listen: arguments.listen,
        insecure: arguments.insecure,
        read_only: arguments.read_only,
        specs: arguments.specs,
        limits: Limits { poll_max: Duration::from_micros(arguments.poll), ..Limits::default() },
        ..ServeOptions::default()
    };
    if let Some(address) = arguments.listen.filter(|address| !address.ip().is_loopback())
        && !arguments.insecure
    {
        return Err(Failure::usage(format!(
            "{address} lets anybody who reaches it read and write every image; listen on loopback, or say --insecure"
        )));
    }
    // Before the ready line, so that a signal right after it is not missed.
    let mut stop = Stop::listen()?;
    let serving = vellum.serve(options).await?;
    let places = [
        socket.map(|path| path.display().to_string()),
        serving.listening.map(|address| address.to_string()),
    ];
    let places: Vec<String> = places.into_iter().flatten().collect();
    let ready = format!("ready: serving {} on {}", vellum.home().display(), places.join(" and "));
    // Whoever started it need not listen, and the clients do not care.
    if let Err(failure) = output.line(&ready).and_then(|()| output.finish()) {
        output.forget();
        if !failure.is_closed_pipe() {
            eprintln!("vellum: cannot print '{ready}': {}", failure.message());
        }
    }
    tell_service_manager("READY=1");
    stop.asked().await;
    tell_service_manager("STOPPING=1");
    let (begun, deadline) = (Instant::now(), Duration::from_secs(arguments.drain_timeout));
    if serving.shutdown(deadline).await {
        return Ok(());
    }
    Err(Failure::Other(anyhow::anyhow!(left_behind(begun.elapsed(), deadline))))
}

/// What is to be said where not everything ended well.
fn left_behind(took: Duration, deadline: Duration) -> String {
    if took < deadline {
        return "not every image was closed and synced, for the reasons logged above".to_owned();
    }
    format!("not everything ended and was synced within {} s", deadline.as_secs())
}

/// sd_notify(3): a datagram to the socket that the service manager names, if there is one.
fn tell_service_manager(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Ok(socket) = UnixDatagram::unbound() {
        let _ = socket.send_to(state.as_bytes(), path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_at_once_is_not_said_to_have_taken_too_long() {
        let [short, long] =
            [1, 30].map(|took| left_behind(Duration::from_secs(took), Duration::from_secs(30)));
        assert!(!short.contains("30 s") && long.contains("30 s"), "{short}, {long}");
    }

    #[test]
    fn a_place_to_listen_may_be_a_name() {
        assert!(address("localhost:10809").unwrap().ip().is_loopback());
        assert_eq!(address("[::1]:7").unwrap().to_string(), "[::1]:7");
        for nonsense in ["", "localhost", "10809", "::1:x", "127.0.0.1:70000"] {
            assert!(address(nonsense).is_err(), "{nonsense}");
        }
    }
}
